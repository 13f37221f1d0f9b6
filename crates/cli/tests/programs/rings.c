/* The kernel works on memory by itself: io_uring with buffers that are swapped out, registered ones, and asynchronous
 * reads and writes past the page cache. */
#include "pattern.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/io_uring.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>

enum { ENTRIES = 64, PART = 64 * PAGE };

static char *memory;
static size_t size;

static void sweep(void) { MUST(sum(memory, size) == sum(memory, size)); }

static struct {
    int fd;
    unsigned *tail, *mask, *array, *completed, *seen, *seen_mask;
    struct io_uring_sqe *entries;
    struct io_uring_cqe *results;
} ring;

static int open_ring(unsigned flags)
{
    struct io_uring_params p = {.flags = flags};
    ring.fd = (int)syscall(SYS_io_uring_setup, ENTRIES, &p);
    if (ring.fd < 0)
        return 0;
    size_t submissions = p.sq_off.array + p.sq_entries * 4, completions = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
    char *sq = mmap(0, submissions, PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_SQ_RING);
    char *cq = mmap(0, completions, PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_CQ_RING);
    ring.entries = mmap(0, p.sq_entries * sizeof *ring.entries, PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_SQES);
    MUST(sq != MAP_FAILED && cq != MAP_FAILED && ring.entries != MAP_FAILED);
    ring.tail = (unsigned *)(sq + p.sq_off.tail);
    ring.mask = (unsigned *)(sq + p.sq_off.ring_mask);
    ring.array = (unsigned *)(sq + p.sq_off.array);
    ring.completed = (unsigned *)(cq + p.cq_off.tail);
    ring.seen = (unsigned *)(cq + p.cq_off.head);
    ring.seen_mask = (unsigned *)(cq + p.cq_off.ring_mask);
    ring.results = (struct io_uring_cqe *)(cq + p.cq_off.cqes);
    return 1;
}

static struct io_uring_sqe *next(int op, int fd, const void *at, unsigned len, uint64_t offset)
{
    unsigned tail = *ring.tail, index = tail & *ring.mask;
    struct io_uring_sqe *entry = &ring.entries[index];
    memset(entry, 0, sizeof *entry);
    entry->opcode = op;
    entry->fd = fd;
    entry->addr = (uint64_t)at;
    entry->len = len;
    entry->off = offset;
    ring.array[index] = index;
    __atomic_store_n(ring.tail, tail + 1, __ATOMIC_RELEASE);
    return entry;
}

/* Hands `count` requests over and waits for them; the sum of their results, or the first error. */
static long go(unsigned count)
{
    MUST(syscall(SYS_io_uring_enter, ring.fd, count, count, IORING_ENTER_GETEVENTS, 0, 0) == count);
    long sum = 0, error = 0;
    while (count-- > 0) {
        unsigned head = *ring.seen;
        MUST(head != __atomic_load_n(ring.completed, __ATOMIC_ACQUIRE));
        long result = ring.results[head & *ring.seen_mask].res;
        __atomic_store_n(ring.seen, head + 1, __ATOMIC_RELEASE);
        if (result < 0 && error == 0)
            error = result;
        sum += result;
    }
    return error ? error : sum;
}

/* A piece that has left memory. */
static char *piece(int number)
{
    char *at = memory + (size_t)number % 32 * (size / 32);
    page_out(at, PART);
    return at;
}

static void plain(int file)
{
    for (int i = 0; i < 16; i++)
        next(IORING_OP_WRITE, file, piece(i), PART, (uint64_t)i * PART);
    MUST(go(16) == 16 * PART);
    sweep();
    for (int i = 0; i < 16; i++)
        next(IORING_OP_READ, file, piece(i + 16), PART, (uint64_t)i * PART);
    MUST(go(16) == 16 * PART);
    for (int i = 0; i < 16; i++)
        MUST(memcmp(memory + i * (size / 32), memory + (i + 16) * (size / 32), PART) == 0);
    puts("plain");
    /* Structures that lie in memory that has left it. */
    struct iovec *vector = (struct iovec *)(memory + 8 * MIB + 5 * PAGE);
    for (int i = 0; i < 4; i++)
        vector[i] = (struct iovec){memory + i * (size / 32), PART};
    for (int i = 0; i < 4; i++)
        piece(i);
    page_out(memory + 8 * MIB + 5 * PAGE, PAGE);
    next(IORING_OP_WRITEV, file, vector, 4, 0);
    MUST(go(1) == 4 * PART);
    memset(vector, 0, 4 * sizeof *vector);
    puts("vectors");
}

static void registered(int file)
{
    static struct iovec buffers[8];
    for (int i = 0; i < 8; i++)
        buffers[i] = (struct iovec){piece(i), PART};
    MUST(syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, buffers, 8) == 0);
    /* The kernel has these pages from now on: what the program writes there it must see, and the other way round. */
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < 8; i++) {
            page_out(buffers[i].iov_base, PART);
            fill(buffers[i].iov_base, PART, 1000 + i + round);
        }
        sweep();
        for (int i = 0; i < 8; i++)
            next(IORING_OP_WRITE_FIXED, file, buffers[i].iov_base, PART, (uint64_t)i * PART)->buf_index = i;
        MUST(go(8) == 8 * PART);
        for (int i = 0; i < 8; i++) {
            char *back = piece(i + 8);
            MUST(pread(file, back, PART, (off_t)i * PART) == PART);
            MUST(memcmp(back, buffers[i].iov_base, PART) == 0);
            fill(back, PART, 2000 + i + round);
            MUST(pwrite(file, back, PART, (off_t)i * PART) == PART);
            page_out(buffers[i].iov_base, PART);
        }
        sweep();
        for (int i = 0; i < 8; i++)
            next(IORING_OP_READ_FIXED, file, buffers[i].iov_base, PART, (uint64_t)i * PART)->buf_index = i;
        MUST(go(8) == 8 * PART);
        for (int i = 0; i < 8; i++)
            MUST(memcmp(memory + (i + 8) * (size / 32), buffers[i].iov_base, PART) == 0);
    }
    MUST(syscall(SYS_io_uring_register, ring.fd, IORING_UNREGISTER_BUFFERS, 0, 0) == 0);
    puts("registered");
}

static void sockets(void)
{
    int ends[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    for (int i = 0; i < 16; i++) {
        next(IORING_OP_SEND, ends[0], piece(i), 8 * PAGE, 0)->msg_flags = MSG_WAITALL;
        next(IORING_OP_RECV, ends[1], piece(i + 5), 8 * PAGE, 0)->msg_flags = MSG_WAITALL;
        MUST(go(2) == 16 * PAGE);
        MUST(memcmp(memory + i % 32 * (size / 32), memory + (i + 5) % 32 * (size / 32), 8 * PAGE) == 0);
    }
    close(ends[0]);
    close(ends[1]);
    puts("sockets");
}

/* Advice without a call of its own. */
static void advice(void)
{
    char *at = map(PART);
    fill(at, PART, 9);
    page_out(at, PART);
    next(IORING_OP_MADVISE, -1, at, PART, 0)->fadvise_advice = MADV_DONTNEED;
    long result = go(1);
    MUST(result == 0 || result == -EACCES);
    uint64_t dropped = sum(at, PART);
    char *zeros = map(PART);
    if (result == 0)
        MUST(memcmp(at, zeros, PART) == 0 && dropped == sum(zeros, PART));
    munmap(at, PART);
    munmap(zeros, PART);
    puts("advice");
}

static void aio(const char *name)
{
    int direct = open(name, O_RDWR | O_DIRECT);
    aio_context_t context = 0;
    if (direct < 0 || syscall(SYS_io_setup, 16, &context) != 0) {
        puts("aio");
        return;
    }
    struct iocb requests[16], *pointers[16];
    struct io_event events[16];
    for (int write = 1; write >= 0; write--) {
        memset(requests, 0, sizeof requests);
        for (int i = 0; i < 16; i++) {
            requests[i].aio_lio_opcode = write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
            requests[i].aio_fildes = direct;
            requests[i].aio_buf = (uint64_t)piece(write ? i : i + 16);
            requests[i].aio_nbytes = PART;
            requests[i].aio_offset = (int64_t)i * PART;
            pointers[i] = &requests[i];
        }
        MUST(syscall(SYS_io_submit, context, 16, pointers) == 16);
        /* All else is needed meanwhile. */
        sweep();
        MUST(syscall(SYS_io_getevents, context, 16, 16, events, 0) == 16);
        for (int i = 0; i < 16; i++)
            MUST(events[i].res == PART);
    }
    for (int i = 0; i < 16; i++)
        MUST(memcmp(memory + i * (size / 32), memory + (i + 16) * (size / 32), PART) == 0);
    syscall(SYS_io_destroy, context);
    close(direct);
    puts("aio");
}

int main(int argc, char **argv)
{
    size = (argc > 1 ? strtoul(argv[1], 0, 10) : 48) * (size_t)MIB;
    memory = map(size);
    fill(memory, size, 7);
    char name[] = "/var/tmp/userswap-rings-XXXXXX";
    int file = mkstemp(name);
    MUST(file >= 0);
    for (int polling = 0; polling < 2; polling++) {
        if (!open_ring(0)) {
            puts("no rings");
            break;
        }
        plain(file);
        registered(file);
        sockets();
        advice();
        close(ring.fd);
    }
    aio(name);
    unlink(name);
    printf("%016lx\n", sum(memory, size));
    return 0;
}
