/* Memory in many small mappings, each far from the others, as V8 draws its at random; and a mapping much larger than what is used of
   it. Prints a sum of all that is used. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096, PIECES = 1500, BYTES = 128 << 10 };

static uint64_t *piece(int number)
{
    return (uint64_t *)((200ul << 30) + (uint64_t)number * (2ul << 30) + (uint64_t)(number % 7) * BYTES);
}

int main(void)
{
    size_t large = 100ul << 30;
    char *at = mmap(0, large, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    for (size_t byte = 0; byte < 48 << 20; byte += 64) at[byte] = byte / PAGE;
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
    for (size_t byte = 0; byte < 48 << 20; byte++) sum = sum * 31 + at[byte];
    printf("%016lx\n", sum);
}
