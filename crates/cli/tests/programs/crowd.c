/* CHILDREN MIB ROUNDS [OWN]: so many children, programs of their own, each with MIB of memory that compresses, all of which each
   writes to and checks in each round. Meanwhile their parent has OWN MiB and waits; it checks them at the end. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8 };

static uint64_t *filled(size_t mib) {
    size_t pages = mib * 256;
    uint64_t *at = mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) exit(2);
    for (size_t page = 0; page < pages; page++)
        for (size_t word = 0; word < WORDS; word++) at[page * WORDS + word] = page + word % 40;
    return at;
}

static void check(uint64_t *at, size_t mib, int rounds) {
    for (int round = 0; round < rounds; round++)
        for (size_t page = 0; page < mib * 256; page++) {
            uint64_t *words = at + page * WORDS;
            if (words[0] != page + round || words[77] != page + 37) exit(3);
            words[0]++;
        }
}

int main(int count, char **args) {
    if (count == 3) {
        check(filled(atoi(args[1])), atoi(args[1]), atoi(args[2]));
        return 0;
    }
    if (count < 4) return 2;
    int children = atoi(args[1]), right = 0, own = count > 4 ? atoi(args[4]) : 0;
    uint64_t *at = own ? filled(own) : 0;
    for (int child = 0; child < children; child++)
        if (fork() == 0) {
            execl(args[0], args[0], args[2], args[3], (char *)0);
            _exit(4);
        }
    for (int child = 0; child < children; child++) {
        int status;
        if (wait(&status) > 0 && status == 0) right++;
    }
    check(at, own, 2);
    printf("%d right\n", right);
    return right != children;
}
