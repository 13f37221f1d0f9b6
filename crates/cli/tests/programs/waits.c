/* Calls that wait in the kernel since before anything was swapped out, on memory that is then put out of it: plain, with buffers named
   in memory, restarted, under a signal handler that waits too, and after one that jumped out of another. */
#include "pattern.h"
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum { PIECE = 16 * PAGE, PIECES = 32 };
static char *arena;

/* A piece of the arena: its first pages have been used, the others have not. */
static char *piece(int number) { return arena + number * PIECE; }

struct waiter {
    const char *name;
    void (*wait)(struct waiter *);
    /* What it waits for, and what a handler of its waits for. */
    int ends[2], inner[2];
    pthread_t thread;
    volatile int ready;
    long result, inner_result;
    /* Its pieces: buffers, structures, the handler's buffer. */
    char *buffer, *structures, *inner_buffer;
};

static __thread struct waiter *self;
static __thread sigjmp_buf back;

static void in_read(struct waiter *waiter)
{
    waiter->result = read(waiter->ends[0], waiter->buffer, 3 * PAGE);
}

static void in_readv(struct waiter *waiter)
{
    struct iovec *parts = (struct iovec *)waiter->structures;
    for (int i = 0; i < 6; i++)
        parts[i] = (struct iovec){waiter->buffer + i * PAGE, PAGE / 2};
    waiter->result = readv(waiter->ends[0], parts, 6);
    for (int i = 1; i < 6; i++)
        memmove(waiter->buffer + i * PAGE / 2, waiter->buffer + i * PAGE, PAGE / 2);
}

static void in_recvfrom(struct waiter *waiter)
{
    waiter->result = recvfrom(waiter->ends[0], waiter->buffer, 3 * PAGE, 0, 0, 0);
}

static void in_recvmsg(struct waiter *waiter)
{
    struct msghdr *message = (struct msghdr *)waiter->structures;
    struct iovec *part = (struct iovec *)(waiter->structures + PAGE);
    *part = (struct iovec){waiter->buffer, 3 * PAGE};
    *message = (struct msghdr){.msg_iov = part, .msg_iovlen = 1};
    waiter->result = recvmsg(waiter->ends[0], message, 0);
}

static void in_epoll(struct waiter *waiter)
{
    int set = epoll_create1(0);
    struct epoll_event *events = (struct epoll_event *)(waiter->structures + PAGE - 4);
    struct epoll_event wanted = {.events = EPOLLIN, .data.u64 = 77};
    MUST(epoll_ctl(set, EPOLL_CTL_ADD, waiter->ends[0], &wanted) == 0);
    int got;
    do
        got = epoll_wait(set, events, 100, -1);
    while (got < 0 && errno == EINTR);
    MUST(got == 1 && events->data.u64 == 77);
    in_read(waiter);
}

static void nothing(int signal) { (void)signal; }

/* Waits under the call that it has interrupted. */
static void wait_too(int signal)
{
    (void)signal;
    int before = errno;
    self->ready = 2;
    self->inner_result = read(self->inner[0], self->inner_buffer, 2 * PAGE);
    errno = before;
}

static void leave(int signal)
{
    (void)signal;
    siglongjmp(back, 1);
}

/* The call that was left is over; another one waits, from the same place of the stack. */
static void left(struct waiter *waiter)
{
    if (sigsetjmp(back, 1) == 0)
        MUST(read(waiter->inner[0], waiter->inner_buffer, 2 * PAGE) < 0);
    waiter->ready = 2;
    waiter->result = read(waiter->ends[0], waiter->buffer, 3 * PAGE);
}

__attribute__((noinline)) static void deep(struct waiter *waiter, int depth)
{
    volatile char room[512];
    room[0] = (char)depth;
    if (depth > 0)
        deep(waiter, depth - 1);
    else
        in_read(waiter);
    room[1] = room[0];
}

/* The same, from further down. */
static void left_deep(struct waiter *waiter)
{
    if (sigsetjmp(back, 1) == 0)
        MUST(read(waiter->inner[0], waiter->inner_buffer, 2 * PAGE) < 0);
    waiter->ready = 2;
    deep(waiter, 20);
}

static void *run(void *argument)
{
    self = argument;
    /* Handlers on a stack of their own, for every second one. */
    if (self->name[0] == 'o') {
        stack_t stack = {.ss_sp = malloc(SIGSTKSZ * 4), .ss_size = SIGSTKSZ * 4};
        MUST(sigaltstack(&stack, 0) == 0);
    }
    self->ready = 1;
    self->wait(self);
    return 0;
}

static void on(int signal, void (*handler)(int))
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART | SA_ONSTACK};
    MUST(sigaction(signal, &action, 0) == 0);
}

int main(int argc, char **argv)
{
    size_t size = (argc > 1 ? strtoul(argv[1], 0, 10) : 48) * MIB;
    static struct waiter waiters[] = {
        {"read", in_read},          {"readv", in_readv},     {"recvfrom", in_recvfrom}, {"recvmsg", in_recvmsg},
        {"epoll_wait", in_epoll},   {"handler", in_read},    {"on its own stack", in_read}, {"restarted", in_read},
        {"left", left},             {"left deep", left_deep},
    };
    enum { COUNT = sizeof waiters / sizeof *waiters, HANDLER = 5, OWN = 6, RESTARTED = 7, LEFT = 8, DEEP = 9 };
    arena = map((PIECES + 1) * PIECE);
    on(SIGUSR1, nothing);
    on(SIGUSR2, wait_too);
    on(SIGHUP, leave);
    for (int i = 0; i < COUNT; i++) {
        struct waiter *waiter = &waiters[i];
        waiter->buffer = piece(3 * i) + PAGE - 5;
        waiter->structures = piece(3 * i + 1);
        waiter->inner_buffer = piece(3 * i + 2) + PAGE - 7;
        memset(piece(3 * i), 1, 2 * PAGE);
        memset(waiter->inner_buffer, 1, PAGE);
        int is_socket = waiter->wait == in_recvfrom || waiter->wait == in_recvmsg;
        MUST((is_socket ? socketpair(AF_UNIX, SOCK_DGRAM, 0, waiter->ends) : pipe(waiter->ends)) == 0);
        MUST(pipe(waiter->inner) == 0);
        MUST(pthread_create(&waiter->thread, 0, run, waiter) == 0);
        while (waiter->ready == 0)
            usleep(1000);
    }
    char *control = piece(PIECES);
    memset(control, 1, PIECE);
    usleep(50000);
    MUST(pthread_kill(waiters[HANDLER].thread, SIGUSR2) == 0 && pthread_kill(waiters[OWN].thread, SIGUSR2) == 0);
    MUST(pthread_kill(waiters[RESTARTED].thread, SIGUSR1) == 0);
    MUST(pthread_kill(waiters[LEFT].thread, SIGHUP) == 0 && pthread_kill(waiters[DEEP].thread, SIGHUP) == 0);
    for (int i = HANDLER; i < COUNT; i++)
        while (i != RESTARTED && waiters[i].ready != 2)
            usleep(1000);
    usleep(50000);

    /* Now memory is swapped, and the rest of the arena put out. */
    char *memory = map(size);
    fill(memory, size, 3);
    uint64_t total = sum(memory, size);
    MUST(madvise(arena, (PIECES + 1) * PIECE, MADV_PAGEOUT) == 0);
    if (getenv("USERSWAP_LIMIT")) {
        MUST(resident_pages(control, PAGE) == 0);
        /* Nobody uses this any more. */
        MUST(resident_pages(piece(3 * LEFT + 2), 2 * PAGE) == 0);
    }
    MUST(pthread_kill(waiters[RESTARTED].thread, SIGUSR1) == 0);
    usleep(20000);
    for (int i = 0; i < COUNT; i++) {
        struct waiter *waiter = &waiters[i];
        if (i == HANDLER || i == OWN) {
            MUST(write(waiter->inner[1], memory + PAGE, 2 * PAGE) == 2 * PAGE);
            usleep(20000);
            MUST(madvise(arena, (PIECES + 1) * PIECE, MADV_PAGEOUT) == 0);
        }
        MUST(write(waiter->ends[1], memory + i * PAGE, 3 * PAGE) == 3 * PAGE);
        MUST(pthread_join(waiter->thread, 0) == 0);
        printf("%s %ld %ld", waiter->name, waiter->result, waiter->inner_result);
        int right = memcmp(waiter->buffer, memory + i * PAGE, 3 * PAGE) == 0;
        if (i == HANDLER || i == OWN)
            right = right && memcmp(waiter->inner_buffer, memory + PAGE, 2 * PAGE) == 0;
        puts(right ? " right" : " WRONG");
    }
    total = mix(total + sum(memory, size));
    printf("%016lx\n", total);
    return 0;
}
