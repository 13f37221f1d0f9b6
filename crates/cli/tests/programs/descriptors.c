/* A program that closes all descriptors but the first three, again and again, and uses every number it can get. */
#include "pattern.h"
#include <fcntl.h>
#include <string.h>

int main(int argc, char **argv)
{
    size_t size = (argc > 1 ? strtoul(argv[1], 0, 10) : 48) * MIB;
    char *memory = map(size);
    fill(memory, size, 5);
    uint64_t total = sum(memory, size);
    for (int round = 0; round < 6; round++) {
        switch (round % 3) {
        case 0:
            closefrom(3);
            break;
        case 1:
            MUST(close_range(3, ~0u, 0) == 0);
            break;
        case 2:
            for (int fd = 3; fd < 1024; fd++)
                close(fd);
            break;
        }
        total = mix(total + sum(memory, size));
        /* Whatever number is free is the program's, and stays it. */
        int null = open("/dev/zero", O_RDWR);
        MUST(null >= 0);
        for (int fd = 10; fd < 200; fd++)
            MUST(dup2(null, fd) == fd);
        total = mix(total + sum(memory, size));
        for (int fd = 10; fd < 200; fd++) {
            char byte = 1;
            MUST(read(fd, &byte, 1) == 1 && byte == 0);
        }
        memory[round * PAGE]++;
    }
    printf("%016lx\n", total);
    return 0;
}
