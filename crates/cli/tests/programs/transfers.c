/* Every way in which the system reads and writes a program's memory for it, on memory that is swapped out. */
#include "pattern.h"
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

static char *memory;
static size_t size;
static uint64_t total;

/* Walks over all of the memory, so that what was used before is swapped out. */
static void sweep(void) { total = mix(total + sum(memory, size)); }

/* A piece that has not been used for long. */
static char *piece(int number) { return memory + (size_t)number % 16 * (size / 16) + 12345 / PAGE * PAGE; }

static void *drain(void *end)
{
    char buffer[4 * PAGE];
    uint64_t got = 0;
    for (ssize_t n; (n = read((int)(intptr_t)end, buffer, sizeof buffer)) > 0;)
        for (ssize_t i = 0; i < n; i++)
            got = got * 31 + (unsigned char)buffer[i];
    return (void *)got;
}

int main(int argc, char **argv)
{
    size = (argc > 1 ? strtoul(argv[1], 0, 10) : 48) * MIB;
    memory = map(size);
    fill(memory, size, 7);
    sweep();
    char name[] = "/var/tmp/userswap-transfers-XXXXXX";
    int file = mkstemp(name);
    MUST(file >= 0);
    size_t part = 32 * PAGE;

    /* Scattered reads and writes. */
    struct iovec parts[8];
    for (int i = 0; i < 8; i++)
        parts[i] = (struct iovec){piece(i) + 100, part - 200};
    MUST(writev(file, parts, 8) == (ssize_t)(8 * (part - 200)));
    sweep();
    for (int i = 0; i < 8; i++)
        parts[i].iov_base = piece(i + 8) + 300;
    MUST(preadv(file, parts, 8, 0) == (ssize_t)(8 * (part - 200)));
    sweep();
    puts("vectors");

    /* Past the page cache. */
    int direct = open(name, O_RDWR | O_DIRECT);
    if (direct >= 0) {
        MUST(pwrite(direct, piece(1), part, 0) == (ssize_t)part);
        sweep();
        MUST(pread(direct, piece(9), part, 0) == (ssize_t)part);
        MUST(memcmp(piece(1), piece(9), part) == 0);
        sweep();
        close(direct);
    }
    puts("direct");

    /* Pages given to a pipe. */
    int ends[2];
    pthread_t reader;
    MUST(pipe(ends) == 0);
    MUST(pthread_create(&reader, 0, drain, (void *)(intptr_t)ends[0]) == 0);
    for (int i = 0; i < 16; i++) {
        struct iovec one = {piece(i), part};
        while (one.iov_len > 0) {
            ssize_t n = vmsplice(ends[1], &one, 1, 0);
            MUST(n > 0);
            one.iov_base = (char *)one.iov_base + n;
            one.iov_len -= n;
        }
    }
    close(ends[1]);
    void *got;
    pthread_join(reader, &got);
    total = mix(total + (uint64_t)got);
    sweep();
    puts("spliced");

    /* From one place of the process to another. */
    for (int i = 0; i < 4; i++) {
        struct iovec from = {piece(i), part}, to = {piece(i + 10), part};
        MUST(process_vm_readv(getpid(), &to, 1, &from, 1, 0) == (ssize_t)part);
        MUST(memcmp(piece(i), piece(i + 10), part) == 0);
        sweep();
        MUST(process_vm_writev(getpid(), &to, 1, &from, 1, 0) == (ssize_t)part);
        sweep();
    }
    puts("process_vm");

    /* Datagrams and their control structures. */
    int pair[2];
    MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0);
    for (int i = 0; i < 16; i++) {
        struct iovec from = {piece(i), 4 * PAGE}, to = {piece(i + 5) + 8 * PAGE, 4 * PAGE};
        struct msghdr *out = (struct msghdr *)(piece(i + 2) + 20 * PAGE), *in = (struct msghdr *)(piece(i + 3) + 21 * PAGE);
        struct msghdr header = {.msg_iov = &from, .msg_iovlen = 1};
        *out = header;
        header.msg_iov = &to;
        *in = header;
        /* Not added up: addresses differ from run to run. */
        sum(memory, size);
        MUST(sendmsg(pair[0], out, 0) == 4 * PAGE);
        MUST(recvmsg(pair[1], in, 0) == 4 * PAGE);
        MUST(memcmp(from.iov_base, to.iov_base, 4 * PAGE) == 0);
        memset(out, 0, sizeof *out);
        memset(in, 0, sizeof *in);
    }
    puts("datagrams");

    if (argc > 2) {
        /* The process's memory as a file. */
        int self = open("/proc/self/mem", O_RDWR);
        MUST(self >= 0);
        for (int i = 0; i < 16; i++) {
            MUST(pread(self, piece(i + 3), part, (off_t)piece(i)) == (ssize_t)part);
            MUST(memcmp(piece(i), piece(i + 3), part) == 0);
            sweep();
            MUST(pwrite(self, piece(i), part, (off_t)piece(i + 7)) == (ssize_t)part);
            sweep();
        }
        close(self);
        puts("mem");
    }
    unlink(name);
    printf("%016lx\n", total);
    return 0;
}
