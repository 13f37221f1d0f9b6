/* Memory in huge pages, made when it is first touched and, by a second thread, of what has come back. */
#include "pattern.h"
#include <pthread.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

enum { HUGE = 2 * MIB };

static char *memory;
static size_t size;
static volatile int done;

static void *collapse(void *unused)
{
    (void)unused;
    for (uint64_t state = 1; !done; state = mix(state + 1)) {
        /* Refused where pages are missing, and on kernels without it. */
        madvise(memory + state % (size / HUGE) * HUGE, HUGE, MADV_COLLAPSE);
        usleep(500);
    }
    return 0;
}

/* A page by its number, and how often it was written. */
static void put(uint64_t *page, uint64_t number, uint64_t version)
{
    for (size_t word = 0; word < WORDS; word++)
        page[word] = word % 16 ? number : mix(number * 1000003 + version * 31 + word);
}

static void check(const uint64_t *page, uint64_t number, uint64_t version)
{
    for (size_t word = 0; word < WORDS; word++)
        MUST(page[word] == (version == 0 ? 0
                            : word % 16  ? number
                                         : mix(number * 1000003 + version * 31 + word)));
}

int main(int count, char **arguments)
{
    size = (count > 1 ? atoi(arguments[1]) : 48) * (size_t)MIB;
    size_t pages = size / PAGE;
    uintptr_t start = (uintptr_t)map(size + HUGE);
    memory = (char *)((start + HUGE - 1) / HUGE * HUGE);
    madvise(memory, size, MADV_HUGEPAGE);
    unsigned char *version = calloc(pages, 1);
    pthread_t thread;
    MUST(pthread_create(&thread, 0, collapse, 0) == 0);
    uint64_t state = 1, writes = 0;
    for (size_t step = 0; step < 3 * pages; step++) {
        state = mix(state + step);
        /* All of them in turn, then mostly those of a part that moves on. */
        size_t number = step < pages ? step : (state % (pages / 8) + step / 4) % pages;
        uint64_t *page = (uint64_t *)(memory + number * PAGE);
        check(page, number, version[number]);
        if (step < pages || state >> 60 & 1) {
            put(page, number, ++version[number]);
            writes++;
        }
    }
    for (size_t number = 0; number < pages; number++)
        check((uint64_t *)(memory + number * PAGE), number, version[number]);
    done = 1;
    pthread_join(thread, 0);
    printf("%zu pages, written %lu times\n", pages, writes);
    return 0;
}
