/* Maps the code of a file that it may write to, shared: what is written there is written to the file. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int main(void) {
    char line[512], path[256] = "";
    unsigned long start = 0, end = 0, offset = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps))
        if (strstr(line, "r-xp") && strstr(line, "/libc.so") &&
            sscanf(line, "%lx-%lx r-xp %lx %*s %*s %255s", &start, &end, &offset, path) == 4)
            break;
    FILE *file = fopen(path, "r");
    static unsigned char before[8 << 20], after[8 << 20];
    size_t size = file ? fread(before, 1, sizeof before, file) : 0;
    int copy = memfd_create("copy", 0);
    if (size < 1000000 || write(copy, before, size) != (ssize_t)size) return 1;
    void *code = mmap(0, end - start, PROT_READ | PROT_EXEC, MAP_SHARED, copy, offset);
    if (code == MAP_FAILED || pread(copy, after, size, 0) != (ssize_t)size) return 2;
    if (memcmp(before, after, size)) return 3;
    puts("ok");
    return 0;
}
