/* What the programs share: memory whose every page is told apart from every other, and a checksum. */
#pragma once
#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, MIB = 1 << 20, WORDS = PAGE / 8 };

static inline uint64_t mix(uint64_t x)
{
    x ^= x >> 31;
    x *= 0x9e3779b97f4a7c15u;
    return x ^ x >> 29;
}

/* A word in six does not compress. */
static inline void fill(void *memory, size_t bytes, uint64_t seed)
{
    uint64_t *words = memory;
    for (size_t word = 0; word < bytes / 8; word++)
        words[word] = word % WORDS < 80 ? mix(seed + word) : seed + word / WORDS;
}

static inline uint64_t sum(const void *memory, size_t bytes)
{
    const uint64_t *words = memory;
    uint64_t sum = 0;
    for (size_t word = 0; word < bytes / 8; word++)
        sum = mix(sum + words[word]);
    return sum;
}

static inline void *map(size_t bytes)
{
    return mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

/* Has the memory, whole pages, leave: at once under `userswap run` once memory is short, natively where there is swap. */
static inline void page_out(void *memory, size_t bytes) { madvise(memory, bytes, MADV_PAGEOUT); }

/* How many of the pages are in memory. */
static inline size_t resident_pages(void *memory, size_t bytes)
{
    size_t pages = 0;
    unsigned char there;
    for (size_t at = 0; at < bytes; at += PAGE)
        pages += mincore((char *)memory + at, PAGE, &there) == 0 && there & 1;
    return pages;
}

/* Ends the program with the line at which what must hold does not. */
#define MUST(condition)                                                                                                \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            perror(#condition);                                                                                        \
            printf("line %d: %s\n", __LINE__, #condition);                                                             \
            fflush(stdout);                                                                                            \
            _exit(3);                                                                                                  \
        }                                                                                                              \
    } while (0)
