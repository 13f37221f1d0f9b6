/* A file is mapped, and its file system answers no more: who asks it hangs, and nobody else may. */
#include "pattern.h"
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

/* The exit status where a file system cannot be made to hang. */
enum { CANNOT = 77 };

int main(int argc, char **argv)
{
    size_t size = (argc > 1 ? strtoul(argv[1], 0, 10) : 48) * MIB, bytes = 8 * MIB;
    MUST(mkdir("hung", 0700) == 0 || access("hung", R_OK) == 0);
    int file = open("hung/mapped", O_RDWR | O_CREAT | O_TRUNC, 0600);
    MUST(file >= 0);
    char *content = map(bytes);
    fill(content, bytes, 5);
    MUST(write(file, content, bytes) == (ssize_t)bytes);
    uint64_t expected = sum(content, bytes);
    MUST(munmap(content, bytes) == 0);
    const char *mapped = mmap(0, bytes, PROT_READ, MAP_PRIVATE, file, 0);
    MUST(mapped != MAP_FAILED && sum(mapped, bytes) == expected);
    /* Over its folder comes a file system that nobody serves. */
    char options[64];
    int server = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0", server);
    if (server < 0 || mount("nobody", "hung", "fuse", MS_NOSUID | MS_NODEV, options))
        return CANNOT;
    char *memory = map(size);
    fill(memory, size, 1);
    for (int round = 0; round < 12; round++) {
        memory[round * PAGE] ^= round;
        printf("%016lx\n", sum(memory, size));
        fflush(stdout);
        MUST(sum(mapped, bytes) == expected);
        char *more = map(2 * MIB);
        fill(more, 2 * MIB, round);
        MUST(munmap(more, MIB) == 0);
        if (round % 4 == 0) {
            pid_t child = fork();
            if (child == 0)
                _exit(sum(more + MIB, MIB) != 0 && sum(mapped, bytes) == expected ? round : 99);
            int status;
            MUST(waitpid(child, &status, 0) == child && status == round << 8);
        }
        MUST(munmap(more + MIB, MIB) == 0);
    }
    return 0;
}
