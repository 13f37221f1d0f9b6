/* Uses memory in every way a C program does, and prints a checksum of all it reads: natively and under a limit it must
 * print the same. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, MIB = 1 << 20 };

static uint64_t mix(uint64_t x)
{
    x ^= x >> 31;
    x *= 0x9e3779b97f4a7c15u;
    return x ^ x >> 29;
}

static void fill(uint64_t *words, size_t bytes, uint64_t seed)
{
    for (size_t page = 0; page < bytes / PAGE; page++)
        for (size_t word = 0; word < PAGE / 8; word++)
            words[page * (PAGE / 8) + word] = word < 96 ? mix(seed + page * 512 + word) : page + word / 7;
}

static uint64_t sum(const uint64_t *words, size_t bytes)
{
    uint64_t sum = 0;
    for (size_t word = 0; word < bytes / 8; word++)
        sum = mix(sum + words[word]);
    return sum;
}

static void *work(void *argument)
{
    uint64_t seed = (uint64_t)argument, total = 0;
    char *pieces[64] = {0};
    size_t sizes[64] = {0};
    for (int round = 0; round < 1500; round++) {
        int at = mix(seed + round) % 64;
        if (pieces[at]) {
            total = mix(total + sum((uint64_t *)pieces[at], sizes[at]));
            if (round % 3 == 0) {
                size_t more = sizes[at] + 16 * PAGE;
                pieces[at] = realloc(pieces[at], more);
                fill((uint64_t *)(pieces[at] + sizes[at]), more - sizes[at], seed + round);
                sizes[at] = more;
                continue;
            }
            free(pieces[at]);
        }
        sizes[at] = (mix(seed * 3 + round) % 120 + 1) * PAGE;
        pieces[at] = malloc(sizes[at]);
        fill((uint64_t *)pieces[at], sizes[at], seed + round);
    }
    for (int at = 0; at < 64; at++) {
        if (pieces[at])
            total = mix(total + sum((uint64_t *)pieces[at], sizes[at]));
        free(pieces[at]);
    }
    return (void *)total;
}

int main(int argc, char **argv)
{
    size_t size = (argc > 1 ? strtoul(argv[1], 0, 10) : 64) * MIB;
    uint64_t total = 0;
    char *big = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fill((uint64_t *)big, size, 1);
    pthread_t threads[4];
    for (long i = 0; i < 4; i++)
        pthread_create(&threads[i], 0, work, (void *)(i + 1));
    for (int i = 0; i < 4; i++) {
        void *result;
        pthread_join(threads[i], &result);
        total = mix(total + (uint64_t)result);
    }
    total = mix(total + sum((uint64_t *)big, size));
    /* System calls on memory that is swapped out: through a pipe and back. */
    int ends[2];
    if (pipe(ends))
        return 2;
    for (size_t at = 0; at < size; at += 64 * PAGE) {
        if (write(ends[1], big + at, 4 * PAGE) != 4 * PAGE)
            return 3;
        if (read(ends[0], big + size - at - 4 * PAGE, 4 * PAGE) != 4 * PAGE)
            return 4;
    }
    /* Half of it goes, an eighth moves, a part is dropped. */
    munmap(big + size / 2, size / 2);
    char *moved = mremap(big, size / 8, size / 4, MREMAP_MAYMOVE);
    madvise(moved + size / 16, size / 32, MADV_DONTNEED);
    total = mix(total + sum((uint64_t *)moved, size / 4));
    total = mix(total + sum((uint64_t *)(big + size / 4), size / 4));
    /* A child sees everything and changes its own. */
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        uint64_t mine = sum((uint64_t *)moved, size / 4);
        fill((uint64_t *)moved, size / 4, 9);
        mine = mix(mine + sum((uint64_t *)moved, size / 4));
        mine = mix(mine + sum((uint64_t *)(big + size / 4), size / 4));
        printf("child %016lx\n", mine);
        fflush(stdout);
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    total = mix(total + sum((uint64_t *)moved, size / 4));
    printf("total %016lx status %d\n", total, status);
    return 0;
}
