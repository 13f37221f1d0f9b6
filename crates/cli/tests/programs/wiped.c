/* Memory that children are to find empty or not at all, advice given through the process's own descriptor, and a process that
   sees nothing of the file system any more: all with memory swapped out. */
#include "pattern.h"
#include <errno.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

static int is_zero(const char *at, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if (at[i])
            return 0;
    return 1;
}

/* Many small mappings come, so that whoever looks for memory looks at all there is. */
static void be_looked_for(void)
{
    for (int i = 0; i < 64; i++) {
        char *small = map(64 << 10);
        fill(small, 64 << 10, i);
        if (i % 8 == 7)
            usleep(2000);
    }
}

static void wait_for(pid_t child, int expected)
{
    int status = -1;
    MUST(child > 0 && waitpid(child, &status, 0) == child && status == expected << 8);
}

/* A child finds zeros, though its memory was written and has been out. */
static void wiped(size_t bytes)
{
    char *at = map(bytes);
    fill(at, bytes, 3);
    uint64_t content = sum(at, bytes);
    page_out(at, bytes);
    MUST(madvise(at, bytes, MADV_WIPEONFORK) == 0);
    be_looked_for();
    page_out(at, bytes);
    MUST(sum(at, bytes) == content);
    page_out(at, bytes);
    pid_t child = fork();
    if (child == 0)
        _exit(is_zero(at, bytes) ? 11 : 12);
    wait_for(child, 11);
    MUST(sum(at, bytes) == content);
    printf("wiped %016lx\n", content);
}

/* A child has nothing there. */
static void left_out(size_t bytes)
{
    char *at = map(bytes);
    fill(at, bytes, 4);
    uint64_t content = sum(at, bytes);
    page_out(at, bytes);
    MUST(madvise(at, bytes, MADV_DONTFORK) == 0);
    be_looked_for();
    page_out(at, bytes);
    pid_t child = fork();
    if (child == 0) {
        char *new = mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        _exit(new == at && is_zero(at, bytes) ? 13 : 14);
    }
    wait_for(child, 13);
    MUST(sum(at, bytes) == content);
    printf("left out %016lx\n", content);
}

/* By the descriptor of the process itself, or, where that cannot be, as always: either way it is done. */
static void advised(size_t bytes)
{
    char *at = map(bytes);
    fill(at, bytes, 5);
    uint64_t content = sum(at + bytes / 2, bytes / 2);
    page_out(at, bytes);
    int self = syscall(SYS_pidfd_open, getpid(), 0);
    MUST(self >= 0);
    struct iovec part = {at, bytes / 2};
    long done = syscall(SYS_process_madvise, self, &part, 1, MADV_DONTNEED, 0);
    if (done < 0) {
        MUST(errno == ENOSYS || errno == EINVAL);
        MUST(madvise(at, bytes / 2, MADV_DONTNEED) == 0);
    }
    MUST(is_zero(at, bytes / 2));
    MUST(sum(at + bytes / 2, bytes / 2) == content);
    printf("advised %016lx\n", content);
    close(self);
}

/* A child of one that has another root stays within the limit, where there is one. */
static void rooted(size_t size)
{
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        if (chroot(".") == 0)
            MUST(chdir("/") == 0);
        pid_t grandchild = fork();
        if (grandchild == 0) {
            /* In small pieces, which have to be looked for. */
            enum { PIECE = 64 << 10, MOST = 4096 };
            static char *pieces[MOST];
            size_t count = 3 * size / PIECE;
            MUST(count <= MOST);
            uint64_t total = 0;
            for (size_t i = 0; i < count; i++) {
                pieces[i] = map(PIECE);
                fill(pieces[i], PIECE, i);
                if (i % 32 == 31)
                    usleep(1000);
            }
            for (size_t i = 0; i < count; i++)
                total = mix(total + sum(pieces[i], PIECE));
            struct rusage usage;
            MUST(getrusage(RUSAGE_SELF, &usage) == 0);
            MUST(!getenv("LD_PRELOAD") || (size_t)usage.ru_maxrss < size / 1024 * 5 / 2);
            printf("rooted %016lx\n", total);
            fflush(stdout);
            _exit(15);
        }
        wait_for(grandchild, 15);
        _exit(16);
    }
    wait_for(child, 16);
}

int main(int argc, char **argv)
{
    size_t size = (argc > 1 ? strtoul(argv[1], 0, 10) : 48) * MIB;
    rooted(size);
    char *memory = map(size);
    fill(memory, size, 1);
    uint64_t first = sum(memory, size);
    wiped(2 * MIB);
    left_out(2 * MIB);
    advised(2 * MIB);
    MUST(sum(memory, size) == first);
    printf("%016lx\n", first);
    return 0;
}
