// Memory that children of fork do not get (MADV_DONTFORK), swapped out and in. Prints what the parent and the child see.
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096 };

static unsigned char *map(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) exit(2);
    return memory;
}

static void fill(unsigned char *memory, size_t bytes) {
    for (size_t at = 0; at < bytes; at += PAGE)
        for (int i = 0; i < PAGE; i += 8) memory[at + i] = (unsigned char)(at / PAGE * 31 + i);
}

static unsigned long sum(const unsigned char *memory, size_t bytes) {
    unsigned long sum = 0;
    for (size_t at = 0; at < bytes; at++) sum = sum * 31 + memory[at];
    return sum;
}

int main(void) {
    const size_t bytes = 32 << 20, left_out = 3 * PAGE;
    unsigned char *memory = map(3 * bytes), *alone = map(bytes);
    fill(memory, 3 * bytes);
    fill(alone, bytes);
    // A whole mapping, one in the middle of another, and a few pages that are in no chunk's beginning or end.
    madvise(alone, bytes, MADV_DONTFORK);
    madvise(memory + bytes, bytes, MADV_DONTFORK);
    madvise(memory + 2 * bytes + 9 * PAGE, left_out, MADV_DONTFORK);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        // What is mapped there now is new: zeros, not what was swapped out.
        unsigned char *again = mmap(memory + bytes, bytes, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        printf("child: new %lu\n", sum(again, bytes));
        fill(again, bytes);
        printf("child: filled %lu\n", sum(again, bytes));
        printf("child: kept %lu %lu\n", sum(memory, bytes), sum(memory + 2 * bytes, 9 * PAGE));
        printf("child: rest %lu\n", sum(memory + 2 * bytes + 9 * PAGE + left_out, bytes - 9 * PAGE - left_out));
        exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    printf("parent: %d %lu %lu\n", status, sum(memory, 3 * bytes), sum(alone, bytes));
    return 0;
}
