/* Threads that start and end all the while, each with memory and a stack of its own. */
#include "pattern.h"
#include <pthread.h>
#include <string.h>

static size_t size;
static __thread uint64_t mine[3 * WORDS];

static void *work(void *argument)
{
    uint64_t seed = (uint64_t)argument, deep[16 * WORDS];
    fill(mine, sizeof mine, seed);
    fill(deep, sizeof deep, seed + 1);
    char *piece = malloc(size / 32);
    fill(piece, size / 32 / PAGE * PAGE, seed + 2);
    uint64_t total = sum(piece, size / 32 / PAGE * PAGE);
    if (seed % 3 == 0)
        usleep(seed % 1000);
    total = mix(total + sum(mine, sizeof mine) + sum(deep, sizeof deep));
    if (seed % 5 != 0) {
        free(piece);
        return (void *)total;
    }
    /* Left to the one that joins. */
    *(uint64_t *)piece = total;
    return piece;
}

int main(int argc, char **argv)
{
    size = (argc > 1 ? strtoul(argv[1], 0, 10) : 48) * MIB;
    char *memory = map(size);
    fill(memory, size, 11);
    uint64_t total = 0;
    for (int round = 0; round < 60; round++) {
        pthread_t threads[8];
        for (long i = 0; i < 8; i++)
            MUST(pthread_create(&threads[i], 0, work, (void *)(round * 8 + i + 1)) == 0);
        total = mix(total + sum(memory + (size_t)round % 8 * (size / 8), size / 8));
        for (int i = 0; i < 8; i++) {
            void *result;
            pthread_join(threads[i], &result);
            if ((round * 8 + i + 1) % 5 != 0) {
                total = mix(total + (uint64_t)result);
            } else {
                total = mix(total + sum(result, size / 32 / PAGE * PAGE));
                free(result);
            }
        }
    }
    printf("%016lx\n", total);
    return 0;
}
