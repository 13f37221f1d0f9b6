/* Makes code into code once more, as tools do that change it: libc's own text, and that of this program. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>
int main(void) {
    pid_t parent = getppid();
    uintptr_t pages[] = {(uintptr_t)&read, (uintptr_t)&main};
    for (int i = 0; i < 2; i++)
        if (mprotect((void *)(pages[i] & ~4095ul), 4096, PROT_READ | PROT_EXEC)) return 1;
    if (getppid() != parent) return 2;
    puts("ok");
    return 0;
}
