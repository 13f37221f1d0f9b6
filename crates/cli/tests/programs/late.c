/* Code that comes when memory is swapped out already, mapped over what was there: with LIBRARY, it is that library, which makes
   system calls itself. */
#ifdef LIBRARY
#include <stddef.h>
#include <sys/syscall.h>

long read_late(int file, void *buffer, size_t bytes)
{
    long result;
    __asm__ volatile("mov %1, %%eax\n\tsyscall"
                     : "=&a"(result)
                     : "i"(SYS_read), "D"(file), "S"(buffer), "d"(bytes)
                     : "rcx", "r11", "memory");
    return result;
}

long write_late(int file, const void *buffer, size_t bytes)
{
    long result;
    __asm__ volatile("mov %1, %%eax\n\tsyscall"
                     : "=&a"(result)
                     : "i"(SYS_write), "D"(file), "S"(buffer), "d"(bytes)
                     : "rcx", "r11", "memory");
    return result;
}
#else
#include "pattern.h"
#include <dlfcn.h>
#include <string.h>

int main(int argc, char **argv)
{
    MUST(argc > 2);
    size_t size = strtoul(argv[1], 0, 10) * MIB, part = 4 * PAGE;
    char *memory = map(size);
    fill(memory, size, 1);
    uint64_t first = sum(memory, size);
    void *library = dlopen(argv[2], RTLD_NOW);
    if (!library) {
        printf("%s\n", dlerror());
        return 2;
    }
    long (*take)(int, void *, size_t) = (long (*)(int, void *, size_t))dlsym(library, "read_late");
    long (*give)(int, const void *, size_t) = (long (*)(int, const void *, size_t))dlsym(library, "write_late");
    MUST(take && give);
    int ends[2];
    MUST(pipe(ends) == 0);
    for (size_t at = 0; at + 2 * part <= size; at += MIB) {
        page_out(memory + at, 2 * part);
        MUST(give(ends[1], memory + at, part) == (long)part);
        page_out(memory + at, 2 * part);
        MUST(take(ends[0], memory + at + part, part) == (long)part);
        MUST(memcmp(memory + at, memory + at + part, part) == 0);
    }
    printf("%016lx %016lx\n", first, sum(memory, size));
    return 0;
}
#endif
