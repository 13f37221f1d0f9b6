/* CHILDREN MIB ROUNDS: so many children, programs of their own, each with MIB of memory that compresses, all of which each writes
   to and checks in each round. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8 };

static int touch(size_t mib, int rounds) {
    size_t pages = mib * 256;
    uint64_t *at = mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return 2;
    for (size_t page = 0; page < pages; page++)
        for (size_t word = 0; word < WORDS; word++) at[page * WORDS + word] = page + word % 40;
    for (int round = 0; round < rounds; round++)
        for (size_t page = 0; page < pages; page++) {
            uint64_t *words = at + page * WORDS;
            if (words[0] != page + round || words[77] != page + 37) return 3;
            words[0]++;
        }
    return 0;
}

int main(int count, char **args) {
    if (count == 3) return touch(atoi(args[1]), atoi(args[2]));
    if (count != 4) return 2;
    int children = atoi(args[1]), right = 0;
    for (int child = 0; child < children; child++)
        if (fork() == 0) {
            execl(args[0], args[0], args[2], args[3], (char *)0);
            _exit(4);
        }
    for (int child = 0; child < children; child++) {
        int status;
        if (wait(&status) > 0 && status == 0) right++;
    }
    printf("%d right\n", right);
    return right != children;
}
