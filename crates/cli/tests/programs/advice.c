/* What a program may say about its memory, and places it asks for, on memory that is swapped out. */
#include "pattern.h"
#include <string.h>
#include <sys/shm.h>
#include <sys/wait.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

enum { PART = MIB };

static char *memory;
static size_t size;

/* All else is used, so that what was used before may leave. */
static void sweep(void) { MUST(sum(memory, size) == sum(memory, size)); }

static int is_zero(const char *at, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if (at[i])
            return 0;
    return 1;
}

/* A part that is not in memory any more, and its sum. */
static char *part(uint64_t seed, uint64_t *content)
{
    char *at = map(PART);
    MUST(at != MAP_FAILED);
    fill(at, PART, seed);
    *content = sum(at, PART);
    page_out(at, PART);
    return at;
}

/* Advice after which the contents are the same. */
static void kept(const char *name, int advice)
{
    uint64_t content;
    char *at = part(1000003 * (uint64_t)advice, &content);
    int refused = madvise(at, PART, advice);
    MUST(sum(at, PART) == content);
    /* Given while in memory, too. */
    MUST(madvise(at, PART, advice) == refused);
    sweep();
    page_out(at, PART);
    MUST(sum(at, PART) == content);
    at[PART / 2] ^= 1;
    sweep();
    at[PART / 2] ^= 1;
    MUST(sum(at, PART) == content);
    MUST(munmap(at, PART) == 0);
    printf("%s %d\n", name, refused);
}

/* Advice after which they are zeros. */
static void dropped(const char *name, int advice)
{
    uint64_t content;
    char *at = part(77, &content);
    MUST(madvise(at + PART / 4, PART / 2, advice) == 0);
    char *others = at + PART / 4 * 3;
    MUST(memcmp(others, at + PART / 4 * 3, PART / 4) == 0);
    if (advice == MADV_FREE) {
        /* Either is right, byte by page; what is written after it stays. */
        memset(at + PART / 4, 5, PART / 2);
        sweep();
        for (size_t i = 0; i < PART / 2; i++)
            MUST(at[PART / 4 + i] == 5);
    } else {
        MUST(is_zero(at + PART / 4, PART / 2));
        sweep();
        MUST(is_zero(at + PART / 4, PART / 2));
    }
    MUST(munmap(at, PART) == 0);
    puts(name);
}

static void in_children(void)
{
    uint64_t content;
    char *at = part(78, &content), *wiped = part(79, &content), *shared = part(80, &content);
    MUST(madvise(at, PART, MADV_DONTFORK) == 0);
    MUST(madvise(wiped, PART, MADV_WIPEONFORK) == 0);
    sweep();
    pid_t child = fork();
    if (child == 0) {
        unsigned char there[PART / PAGE];
        MUST(mincore(at, PART, there) == -1);
        MUST(is_zero(wiped, PART));
        MUST(sum(shared, PART) == content);
        /* Something of the child's own where the parent has its memory. */
        MUST(mmap(at, PART, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at);
        MUST(is_zero(at, PART));
        fill(at, PART, 4);
        uint64_t mine = sum(at, PART);
        sweep();
        MUST(sum(at, PART) == mine);
        _exit(0);
    }
    int status;
    MUST(waitpid(child, &status, 0) == child && status == 0);
    MUST(madvise(at, PART, MADV_DOFORK) == 0);
    MUST(madvise(wiped, PART, MADV_KEEPONFORK) == 0);
    sweep();
    uint64_t before = sum(at, PART);
    child = fork();
    if (child == 0) {
        MUST(sum(at, PART) == before && sum(wiped, PART) != 0);
        _exit(0);
    }
    MUST(waitpid(child, &status, 0) == child && status == 0);
    MUST(munmap(at, PART) == 0 && munmap(wiped, PART) == 0 && munmap(shared, PART) == 0);
    puts("children");
}

/* Memory of System V in the place of memory that is swapped out, and then nothing there, and then new memory. */
static void attached(void)
{
    uint64_t content;
    char *at = part(81, &content);
    int id = shmget(IPC_PRIVATE, PART / 2, IPC_CREAT | 0600);
    if (id < 0) {
        puts("attached");
        return;
    }
    /* Half of it is in memory. */
    MUST(sum(at, PART / 2) != content);
    MUST(shmat(id, at + PART / 4, SHM_REMAP) == at + PART / 4);
    MUST(is_zero(at + PART / 4, PART / 2));
    fill(at + PART / 4, PART / 2, 5);
    content = sum(at, PART);
    sweep();
    MUST(sum(at, PART) == content);
    MUST(shmdt(at + PART / 4) == 0);
    MUST(shmctl(id, IPC_RMID, 0) == 0);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
    char *again = mmap(at + PART / 4, PART / 2, PROT_READ | PROT_WRITE, flags, -1, 0);
    MUST(again == at + PART / 4);
    MUST(is_zero(again, PART / 2));
    sweep();
    MUST(is_zero(again, PART / 2));
    fill(again, PART / 2, 6);
    content = sum(at, PART);
    page_out(at, PART);
    MUST(sum(at, PART) == content);
    MUST(munmap(at, PART) == 0);
    puts("attached");
}

static void in_places(void)
{
    uint64_t content;
    char *at = part(82, &content);
    /* Not over what is there. */
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
    MUST(mmap(at + PAGE, PAGE, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED);
    MUST(sum(at, PART) == content);
    sweep();
    MUST(munmap(at + PART / 4, PART / 2) == 0);
    /* Nobody else maps anything here: the place is free. */
    sweep();
    MUST(mmap(at + PART / 4, PART / 2, PROT_READ | PROT_WRITE, flags, -1, 0) == at + PART / 4);
    MUST(is_zero(at + PART / 4, PART / 2));
    sweep();
    MUST(is_zero(at + PART / 4, PART / 2));
    /* Out of reach, and back. */
    fill(at, PART, 6);
    content = sum(at, PART);
    for (int round = 0; round < 3; round++) {
        page_out(at, round < 2 ? PART : 0);
        MUST(mprotect(at, PART, PROT_NONE) == 0);
        if (round > 0)
            sweep();
        MUST(mprotect(at, PART, round == 1 ? PROT_READ : PROT_READ | PROT_WRITE) == 0);
        MUST(sum(at, PART) == content);
        MUST(mprotect(at, PART, PROT_READ | PROT_WRITE) == 0);
        MUST(sum(at, PART) == content);
    }
    MUST(munmap(at, PART) == 0);
    /* Shared with children, and files in memory: they are not ours to swap, and must be what they are. */
    char *shared = mmap(0, PART, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int file = memfd_create("part", 0);
    MUST(ftruncate(file, PART) == 0);
    char *first = mmap(0, PART, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    char *copied = mmap(0, PART, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    fill(shared, PART, 7);
    fill(first, PART, 8);
    uint64_t of_file = sum(copied, PART);
    fill(copied, PART / 2, 9);
    uint64_t of_copy = sum(copied, PART);
    sweep();
    pid_t child = fork();
    if (child == 0) {
        MUST(sum(copied, PART) == of_copy && sum(first, PART) == of_file);
        fill(shared, PART, 10);
        fill(first, PART, 11);
        _exit(0);
    }
    int status;
    MUST(waitpid(child, &status, 0) == child && status == 0);
    fill(memory, PART, 10);
    MUST(memcmp(memory, shared, PART) == 0);
    fill(memory, PART, 11);
    MUST(memcmp(memory, first, PART) == 0);
    MUST(memcmp(memory + PART / 2, copied + PART / 2, PART / 2) == 0);
    puts("places");
}

int main(int argc, char **argv)
{
    size = (argc > 1 ? strtoul(argv[1], 0, 10) : 40) * (size_t)MIB;
    memory = map(size);
    fill(memory, size, 3);
    uint64_t whole = sum(memory, size);
    kept("normal", MADV_NORMAL);
    kept("random", MADV_RANDOM);
    kept("sequential", MADV_SEQUENTIAL);
    kept("willneed", MADV_WILLNEED);
    kept("cold", MADV_COLD);
    kept("pageout", MADV_PAGEOUT);
    kept("dontdump", MADV_DONTDUMP);
    kept("hugepage", MADV_HUGEPAGE);
    kept("nohugepage", MADV_NOHUGEPAGE);
    kept("populate read", MADV_POPULATE_READ);
    kept("populate write", MADV_POPULATE_WRITE);
    kept("mergeable", MADV_MERGEABLE);
    kept("unmergeable", MADV_UNMERGEABLE);
    MUST(sum(memory, size) == whole);
    dropped("dontneed", MADV_DONTNEED);
    dropped("free", MADV_FREE);
    in_children();
    MUST(sum(memory, size) == whole);
    attached();
    in_places();
    return 0;
}
