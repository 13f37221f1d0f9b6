/* Brings an allocator for its one thread, as old Lisps do, which libc then uses for everybody. */
#include "pattern.h"
#include <string.h>
#include <sys/syscall.h>

static _Alignas(16) char room[1 << 20];
static size_t used;

void *malloc(size_t bytes)
{
    static long thread;
    long caller = syscall(SYS_gettid);
    if (!thread)
        thread = caller;
    if (caller != thread) {
        static const char told[] = "another thread allocates\n";
        syscall(SYS_write, 1, told, sizeof told - 1);
    }
    size_t at = used;
    used += (bytes + 31) / 16 * 16;
    if (used > sizeof room)
        return 0;
    memcpy(room + at, &bytes, sizeof bytes);
    return room + at + 16;
}

void *calloc(size_t count, size_t bytes) { return malloc(count * bytes); }

void free(void *memory) { (void)memory; }

void *realloc(void *memory, size_t bytes)
{
    void *other = malloc(bytes);
    size_t before = 0;
    if (memory)
        memcpy(&before, (char *)memory - 16, sizeof before);
    return other ? memcpy(other, memory, before < bytes ? before : bytes) : 0;
}

int main(int argc, char **argv)
{
    MUST(argc > 1);
    size_t size = strtoul(argv[1], 0, 10) * MIB;
    char *memory = map(size);
    fill(memory, size, 1);
    printf("%016lx\n", sum(memory, size));
    return 0;
}
