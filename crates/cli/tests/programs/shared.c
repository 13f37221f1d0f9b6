// After a fork, parent and child ask for memory they share to be paged out. Prints checksums, and as much of it as each
// still has in memory: in whole eighths on standard error.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, BYTES = 32 << 20 };

static unsigned long sum(const unsigned char *memory) {
    unsigned long sum = 0;
    for (size_t at = 0; at < BYTES; at++) sum = sum * 31 + memory[at];
    return sum;
}

static void page_out(const char *who, unsigned char *memory) {
    static unsigned char present[BYTES / PAGE];
    madvise(memory, BYTES, MADV_PAGEOUT);
    mincore(memory, BYTES, present);
    size_t pages = 0;
    for (size_t page = 0; page < BYTES / PAGE; page++) pages += present[page] & 1;
    fprintf(stderr, "%s: %zu eighths\n", who, pages * 8 / (BYTES / PAGE));
    printf("%s: %lu\n", who, sum(memory));
    fflush(stdout);
}

int main(void) {
    unsigned char *memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (size_t at = 0; at < BYTES; at += 8) memory[at] = (unsigned char)(at / PAGE * 31 + at);
    pid_t child = fork();
    if (child == 0) {
        page_out("child", memory);
        exit(0);
    }
    waitpid(child, NULL, 0);
    child = fork();
    if (child == 0) {
        pause();
    }
    page_out("parent", memory);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    return 0;
}
