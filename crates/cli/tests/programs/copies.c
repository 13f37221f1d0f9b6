/* CHILDREN MIB ROUNDS: MIB of memory that compresses, and so many children made by fork, each of which writes to all of it and checks
   it in each round, as the parent does: by then each has its own. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8 };

static int is_right(uint64_t *words, size_t page, uint64_t first) {
    if (words[0] != first) return 0;
    for (size_t word = 1; word < WORDS; word++)
        if (words[word] != page + word % 40) return 0;
    return 1;
}

static void write_and_check(uint64_t *at, size_t pages, int rounds, uint64_t who) {
    for (int round = 0; round < rounds; round++)
        for (size_t page = 0; page < pages; page++) {
            uint64_t *words = at + page * WORDS;
            uint64_t before = round ? page + who * 1000 + round : page;
            if (!is_right(words, page, before)) exit(3);
            words[0] = page + who * 1000 + round + 1;
        }
}

int main(int count, char **args) {
    if (count < 4) return 2;
    int children = atoi(args[1]), rounds = atoi(args[3]), right = 0;
    size_t pages = atol(args[2]) * 256;
    uint64_t *at = mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return 2;
    for (size_t page = 0; page < pages; page++)
        for (size_t word = 0; word < WORDS; word++) at[page * WORDS + word] = page + word % 40;
    for (int child = 1; child <= children; child++)
        if (fork() == 0) {
            write_and_check(at, pages, rounds, child);
            _exit(0);
        }
    write_and_check(at, pages, rounds, 0);
    for (int child = 0, status; child < children; child++)
        if (wait(&status) > 0 && status == 0) right++;
    printf("%d right\n", right);
    return 0;
}
