/* Threads that change mappings in every way while others use theirs. */
#include "pattern.h"
#include <pthread.h>
#include <string.h>

static size_t size;
static volatile int done;

/* Reads and writes all the while, so that memory is short. */
static void *churn(void *argument)
{
    uint64_t seed = (uint64_t)argument, *memory = map(size), total = 0;
    fill(memory, size, seed);
    for (int round = 0; round < 3; round++) {
        total = mix(total + sum(memory, size));
        for (size_t word = round; word < size / 8; word += WORDS)
            memory[word] += round;
    }
    return (void *)total;
}

static void *change(void *argument)
{
    uint64_t seed = (uint64_t)argument, total = 0;
    size_t part = MIB;
    for (int round = 0; round < 40; round++, seed += 1000) {
        char *at = map(4 * part);
        fill(at, 4 * part, seed);
        switch (round % 9) {
        case 0: /* Over the middle, something new. */
            MUST(mmap(at + part, part, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
                 at + part);
            fill(at + part, part / 2, seed + 1);
            break;
        case 1: { /* Moved to a place of our choice, over what is there. */
            char *target = map(8 * part);
            fill(target, 8 * part, seed + 2);
            MUST(mremap(at, 4 * part, 4 * part, MREMAP_MAYMOVE | MREMAP_FIXED, target + 2 * part) == target + 2 * part);
            total = mix(total + sum(target, 8 * part));
            munmap(target + 6 * part, 2 * part);
            munmap(target, 2 * part);
            at = target + 2 * part;
            break;
        }
        case 2: /* A part cannot be read for a while. */
            MUST(mprotect(at + part, part, PROT_NONE) == 0);
            usleep(2000);
            MUST(mprotect(at + part, part, PROT_READ) == 0);
            total = mix(total + sum(at + part, part));
            MUST(mprotect(at + part, part, PROT_READ | PROT_WRITE) == 0);
            at[part] ^= 1;
            break;
        case 3: /* A part is dropped, and a part may be dropped. */
            MUST(madvise(at, part, MADV_DONTNEED) == 0);
            MUST(madvise(at + part, part, MADV_FREE) == 0);
            fill(at + part, part, seed + 3);
            break;
        case 4: /* Kept in memory for a while. */
            if (mlock(at + part, part) == 0) {
                usleep(2000);
                at[part + 5]++;
                MUST(munlock(at + part, part) == 0);
            } else {
                at[part + 5]++;
            }
            break;
        case 5: /* Grown and shrunk. */
            at = mremap(at, 4 * part, 6 * part, MREMAP_MAYMOVE);
            fill(at + 5 * part, part, seed + 4);
            total = mix(total + sum(at, 6 * part));
            MUST(mremap(at, 6 * part, 4 * part, 0) == at);
            break;
        case 6: /* Each second page away, and some of them back. */
            for (size_t page = 0; page < 4 * part / PAGE; page += 16)
                MUST(munmap(at + page * PAGE, PAGE) == 0);
            for (size_t page = 0; page < 4 * part / PAGE; page += 16)
                MUST(mmap(at + page * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
                          0) == at + page * PAGE);
            break;
        case 7: { /* The memory stays, and moves; the old place reads as zeros. */
            char *moved = mremap(at, 4 * part, 4 * part, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0);
            if (moved != MAP_FAILED) {
                total = mix(total + sum(at, 4 * part));
                munmap(at, 4 * part);
                at = moved;
            } else {
                total = mix(total + sum(memset(map(4 * part), 0, 1), 4 * part));
            }
            break;
        }
        case 8: { /* Moved in halves to where they are neighbours again; the first was given advice meanwhile. */
            char *target = map(4 * part);
            MUST(mremap(at, 2 * part, 2 * part, MREMAP_MAYMOVE | MREMAP_FIXED, target) == target);
            MUST(madvise(target, 2 * part, round % 2 ? MADV_RANDOM : MADV_SEQUENTIAL) == 0);
            page_out(target, 2 * part);
            MUST(mremap(at + 2 * part, 2 * part, 2 * part, MREMAP_MAYMOVE | MREMAP_FIXED, target + 2 * part) ==
                 target + 2 * part);
            at = target;
            break;
        }
        }
        total = mix(total + sum(at, 4 * part));
        MUST(munmap(at, 4 * part) == 0);
    }
    return (void *)total;
}

int main(int argc, char **argv)
{
    size = (argc > 1 ? strtoul(argv[1], 0, 10) : 16) * MIB;
    pthread_t threads[6];
    for (long i = 0; i < 6; i++)
        pthread_create(&threads[i], 0, i < 2 ? churn : change, (void *)(i * 1000003 + 1));
    for (int i = 0; i < 6; i++) {
        void *result;
        pthread_join(threads[i], &result);
        printf("%d %016lx\n", i, (uint64_t)result);
    }
    return 0;
}
