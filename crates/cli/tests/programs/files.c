/* Mappings of a file: what was changed in them, and what was not, while memory is short. */
#include "pattern.h"
#include <fcntl.h>
#include <pthread.h>
#include <string.h>

enum { ROUNDS = 400, STEP = 37, OWN = 7 };

static size_t size;
static volatile int done;

/* Makes pages of a private mapping writable, changes them, and forbids it again. */
static void *change(void *mapping)
{
    char *memory = mapping;
    for (int round = 0; round < ROUNDS; round++) {
        size_t at = round * STEP % (size / PAGE) * PAGE;
        MUST(mprotect(memory + at, PAGE, PROT_READ | PROT_WRITE) == 0);
        memcpy(memory + at, &round, sizeof round);
        MUST(mprotect(memory + at, PAGE, PROT_READ) == 0);
        usleep(200);
        MUST(memcmp(memory + at, &round, sizeof round) == 0);
    }
    done = 1;
    return 0;
}

int main(int argc, char **argv)
{
    size = (argc > 1 ? strtoul(argv[1], 0, 10) : 16) * MIB;
    char *content = map(size);
    fill(content, size, 7);
    int file = open("mapped", O_RDWR | O_CREAT | O_TRUNC, 0600);
    MUST(file >= 0 && write(file, content, size) == (ssize_t)size);
    char *changed = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    char *unchanged = mmap(0, size, PROT_READ, MAP_PRIVATE, file, 0);
    char *shared = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    for (size_t page = 0; page < size / PAGE; page += OWN)
        memset(changed + page * PAGE, (int)page, 100);
    MUST(mprotect(changed, size, PROT_READ) == 0);
    pthread_t thread;
    pthread_create(&thread, 0, change, changed);
    uint64_t total = 0, rounds = 0;
    for (; rounds < 4 || !done; rounds++) {
        fill(content, size, rounds);
        for (size_t page = 0; page < size / PAGE; page++) {
            MUST(memcmp(unchanged + page * PAGE + 2000, shared + page * PAGE + 2000, 96) == 0);
            shared[page * PAGE] = (char)rounds;
        }
        MUST(sum(content, size) != 0);
    }
    pthread_join(thread, 0);
    for (size_t page = 0; page < size / PAGE; page++)
        MUST(unchanged[page * PAGE] == (char)(rounds - 1));
    /* The pages that are the process's own; in the others it sees what it wrote through the shared mapping. */
    for (size_t page = 0; page < size / PAGE; page += OWN)
        total = mix(total + sum(changed + page * PAGE, PAGE));
    for (size_t round = 0; round < ROUNDS; round++)
        total = mix(total + sum(changed + round * STEP % (size / PAGE) * PAGE, PAGE));
    printf("%016lx\n", total);
    memset(shared, 0, size);
    MUST(msync(shared, size, MS_SYNC) == 0);
    MUST(pread(file, content, size, 0) == (ssize_t)size);
    total = sum(content, size);
    printf("%016lx\n", total);
    return 0;
}
