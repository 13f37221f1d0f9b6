/* Memory that comes in many mappings as small as what this process's own swapper uses for a moment, among small pieces. */
#include "pattern.h"
#include <string.h>

enum { BLOCK = 64 << 10 };

int main(int count, char **arguments)
{
    size_t blocks = (count > 1 ? atoi(arguments[1]) : 48) * (size_t)MIB / BLOCK / 2;
    char **block = malloc(blocks * sizeof *block), **piece = malloc(blocks * 16 * sizeof *piece);
    for (size_t at = 0; at < blocks; at++) {
        block[at] = map(BLOCK);
        fill(block[at], BLOCK, at);
        for (size_t small = at * 16; small < at * 16 + 16; small++) {
            piece[small] = malloc(BLOCK / 16);
            fill(piece[small], BLOCK / 16 / 8 * 8, small);
        }
        size_t old = at / 2;
        MUST(sum(block[old], 256) != 0);
    }
    uint64_t total = 0;
    for (int round = 0; round < 2; round++)
        for (size_t at = 0; at < blocks; at++) {
            total = mix(total + sum(block[at], BLOCK));
            for (size_t small = at * 16; small < at * 16 + 16; small++)
                total = mix(total + sum(piece[small], BLOCK / 16 / 8 * 8));
        }
    printf("%lx\n", total);
    return 0;
}
