/* A program that handles faults in its memory itself, while userswap handles those in the rest: its memory is first
 * used as any other, and may be swapped out when it is given to its own handler. */
#include "pattern.h"
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#ifndef UFFDIO_MOVE
struct uffdio_move {
    uint64_t dst, src, len, mode;
    int64_t move;
};
#define UFFDIO_MOVE _IOWR(UFFDIO, 0x05, struct uffdio_move)
#endif

enum { PART = 2 * MIB };

static char *memory;
static size_t size;
static int faults;
static volatile long handled;

static void sweep(void) { MUST(sum(memory, size) == sum(memory, size)); }

/* Fills each page with its own address. */
static void *handle(void *unused)
{
    (void)unused;
    static uint64_t page[WORDS];
    struct uffd_msg message;
    while (read(faults, &message, sizeof message) == sizeof message) {
        uint64_t at = message.arg.pagefault.address / PAGE * PAGE;
        for (int word = 0; word < WORDS; word++)
            page[word] = at;
        struct uffdio_copy copy = {.dst = at, .src = (uint64_t)page, .len = PAGE};
        handled++;
        ioctl(faults, UFFDIO_COPY, &copy);
    }
    return 0;
}

int main(int argc, char **argv)
{
    size = (argc > 1 ? strtoul(argv[1], 0, 10) : 40) * (size_t)MIB;
    memory = map(size);
    fill(memory, size, 3);
    uint64_t whole = sum(memory, size);
    char *at = map(PART), *other = map(PART);
    fill(at, PART, 4);
    fill(other, PART, 5);
    uint64_t content = sum(at, PART), of_other = sum(other, PART);
    page_out(at, PART);
    page_out(other, PART);

    faults = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    MUST(faults >= 0);
    struct uffdio_api api = {.api = UFFD_API};
    MUST(ioctl(faults, UFFDIO_API, &api) == 0);
    struct uffdio_register all = {.range = {(uint64_t)at, PART}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    MUST(ioctl(faults, UFFDIO_REGISTER, &all) == 0);
    pthread_t thread;
    MUST(pthread_create(&thread, 0, handle, 0) == 0);

    /* What was there is there still. */
    MUST(sum(at, PART) == content && handled == 0);
    sweep();
    MUST(sum(at, PART) == content && handled == 0);
    /* What is dropped is asked of the program. */
    MUST(madvise(at, PART / 2, MADV_DONTNEED) == 0);
    sweep();
    for (size_t page = 0; page < PART / 2; page += PAGE)
        MUST(*(uint64_t *)(at + page) == (uint64_t)(at + page));
    MUST(handled == PART / 2 / PAGE);
    sweep();
    MUST(*(uint64_t *)at == (uint64_t)at && handled == PART / 2 / PAGE);
    puts("register");

    /* Pages are moved out of memory that is swapped out. */
    MUST(madvise(at, PART, MADV_DONTNEED) == 0);
    struct uffdio_move move = {(uint64_t)at, (uint64_t)other, PART, 0, 0};
    if (ioctl(faults, UFFDIO_MOVE, &move) == 0) {
        MUST(sum(at, PART) == of_other);
        for (size_t byte = 0; byte < PART; byte++)
            MUST(other[byte] == 0);
        sweep();
        MUST(sum(at, PART) == of_other && other[5] == 0);
    }
    MUST(munmap(at, PART) == 0);
    MUST(sum(memory, size) == whole);
    puts("moved");
    return 0;
}
