/* Memory that is written and executed, as heaps of Lisp systems are: each page begins with a function that tells which it is. */
#include "pattern.h"
#include <string.h>
#include <sys/wait.h>

typedef unsigned (*Function)(void);

enum { CODE = 6, EXECUTED = PROT_READ | PROT_WRITE | PROT_EXEC };

static void write_function(char *page, unsigned number)
{
    unsigned char code[CODE] = {0xb8, number, number >> 8, number >> 16, number >> 24, 0xc3};
    memcpy(page, code, CODE);
}

/* Calls the functions of all pages, from one to the next but `step - 1`. */
static uint64_t call_all(char *memory, size_t pages, size_t step)
{
    uint64_t sum = 0;
    for (size_t at = 0, page = 0; at < pages; at++, page = (page + step) % pages) {
        Function function = (Function)(void *)(memory + page * PAGE);
        unsigned number = function();
        MUST(number == page * 7 + 1);
        sum = mix(sum + number);
    }
    return sum;
}

/* What is left of the pages. */
static uint64_t rest(char *memory, size_t pages)
{
    uint64_t all = 0;
    for (size_t page = 0; page < pages; page++)
        all = mix(all + sum(memory + page * PAGE + 8, PAGE - 8));
    return all;
}

static void fill_all(char *memory, size_t pages)
{
    fill(memory, pages * PAGE, 3);
    for (size_t page = 0; page < pages; page++)
        write_function(memory + page * PAGE, page * 7 + 1);
}

int main(int argc, char **argv)
{
    MUST(argc > 1);
    size_t size = strtoul(argv[1], 0, 10) * MIB, pages = size / PAGE;
    char *memory = mmap(0, size, EXECUTED, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(memory != MAP_FAILED);
    fill_all(memory, pages);
    printf("%016lx %016lx\n", call_all(memory, pages, 1), call_all(memory, pages, 4099));
    printf("%016lx\n", rest(memory, pages));
    /* A part cannot be executed any more, then can again; another only be executed, for a while. */
    page_out(memory, size);
    MUST(mprotect(memory, size / 4, PROT_READ | PROT_WRITE) == 0);
    MUST(mprotect(memory + size / 2, size / 4, PROT_READ | PROT_EXEC) == 0);
    page_out(memory, size);
    printf("%016lx\n", rest(memory, pages));
    page_out(memory, size);
    MUST(mprotect(memory, size, EXECUTED) == 0);
    printf("%016lx\n", call_all(memory, pages, 4099));
    /* Of each two pages one cannot be written for a while. */
    for (size_t page = 0; page < 512; page += 2)
        MUST(mprotect(memory + page * PAGE, PAGE, PROT_READ | PROT_EXEC) == 0);
    page_out(memory, 512 * PAGE);
    printf("%016lx\n", call_all(memory, 512, 1));
    MUST(mprotect(memory, size, EXECUTED) == 0);
    page_out(memory, 512 * PAGE);
    printf("%016lx\n", rest(memory, pages));
    /* Both kinds beside each other. */
    char *other = map(size / 2);
    fill(other, size / 2, 5);
    printf("%016lx %016lx\n", call_all(memory, pages, 1), sum(other, size / 2));
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        fill_all(memory, pages / 2);
        printf("%016lx %016lx\n", call_all(memory, pages, 4099), sum(other, size / 2));
        exit(0);
    }
    int status;
    MUST(waitpid(child, &status, 0) == child && status == 0);
    printf("%016lx\n", rest(memory, pages));
    return 0;
}
