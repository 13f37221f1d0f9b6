/* Memory in many small mappings, each far from the others, as V8 draws its at random. Prints a sum of all of it. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096, PIECES = 500, BYTES = 256 << 10 };

static uint64_t *piece(int number)
{
    return (uint64_t *)((200ul << 30) + (uint64_t)number * (3ul << 30) + (uint64_t)(number % 7) * BYTES);
}

int main(void)
{
    for (int number = 0; number < PIECES; number++) {
        uint64_t *words = piece(number);
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
        if (mmap(words, BYTES, PROT_READ | PROT_WRITE, flags, -1, 0) != words) {
            perror("mmap");
            return 1;
        }
        for (int page = 0; page < BYTES / PAGE; page++)
            for (int word = 0; word < 64; word++)
                words[page * (PAGE / 8) + word] = (uint64_t)number * 1000003 + page * 31 + word;
    }
    uint64_t sum = 0;
    for (int round = 0; round < 2; round++)
        for (int number = 0; number < PIECES; number++) {
            uint64_t *words = piece(number * 7 % PIECES);
            for (int word = 0; word < BYTES / 8; word++)
                sum = sum * 31 + words[word];
            words[0]++;
        }
    printf("%016lx\n", sum);
}
