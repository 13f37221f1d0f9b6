/* System calls whose every argument in memory has just been put out of it. */
#include "pattern.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

static char *arena;
static size_t used;
enum { ARENA = 4 * MIB };

/* A piece of the arena, on pages of its own; across a border of two of them. */
static void *piece(size_t bytes)
{
    char *at = arena + used + PAGE - 8;
    used += (bytes + 3 * PAGE) / PAGE * PAGE;
    MUST(used < ARENA);
    return at;
}

static void *given(const void *bytes, size_t count) { return memcpy(piece(count), bytes, count); }
static char *text(const char *string) { return given(string, strlen(string) + 1); }

/* What has been put there leaves memory. */
static void out(void) { MUST(madvise(arena, ARENA, MADV_PAGEOUT) == 0); }

struct waiter {
    int pipe[2], epoll[2], poll[2];
    char *buffer;
    struct epoll_event *events;
    struct pollfd *polled;
    uint32_t *word;
};

/* These wait in the kernel while everything around them begins to be swapped. */
static void *wait_in_read(void *argument)
{
    struct waiter *waiter = argument;
    return (void *)read(waiter->pipe[0], waiter->buffer, 3 * PAGE);
}
static void *wait_in_epoll(void *argument)
{
    struct waiter *waiter = argument;
    int set = epoll_create1(0);
    struct epoll_event wanted = {.events = EPOLLIN, .data.u64 = 77};
    epoll_ctl(set, EPOLL_CTL_ADD, waiter->epoll[0], &wanted);
    long got = epoll_wait(set, waiter->events, 100, -1);
    return (void *)(got * 1000 + (long)waiter->events->data.u64);
}
static void *wait_in_poll(void *argument)
{
    struct waiter *waiter = argument;
    *waiter->polled = (struct pollfd){.fd = waiter->poll[0], .events = POLLIN};
    long got = poll(waiter->polled, 1, -1);
    return (void *)(got * 1000 + waiter->polled->revents);
}
static void *wait_in_futex(void *argument)
{
    struct waiter *waiter = argument;
    while (*waiter->word == 0)
        if (syscall(SYS_futex, waiter->word, FUTEX_WAIT, 0, 0, 0, 0) != 0 && errno != EAGAIN && errno != EINTR)
            return (void *)(long)-errno;
    return (void *)(long)*waiter->word;
}

static volatile sig_atomic_t alarms;
static void on_alarm(int signal) { (void)signal, alarms++; }

int main(int argc, char **argv)
{
    size_t size = (argc > 1 ? strtoul(argv[1], 0, 10) : 48) * MIB;
    struct waiter waiter;
    char *fresh = map(64 * PAGE * 4);
    waiter.buffer = fresh + PAGE - 5;
    waiter.events = (void *)(fresh + 64 * PAGE - 8);
    waiter.polled = (void *)(fresh + 128 * PAGE);
    waiter.word = (void *)(fresh + 192 * PAGE);
    MUST(pipe(waiter.pipe) == 0 && pipe(waiter.epoll) == 0 && pipe(waiter.poll) == 0);
    void *(*waits[])(void *) = {wait_in_read, wait_in_epoll, wait_in_poll, wait_in_futex};
    pthread_t waiting[4];
    for (int i = 0; i < 4; i++)
        MUST(pthread_create(&waiting[i], 0, waits[i], &waiter) == 0);
    usleep(20000);

    char *memory = map(size);
    fill(memory, size, 3);
    uint64_t total = sum(memory, size);
    total = mix(total + sum(memory, size));
    arena = map(ARENA);

    MUST(write(waiter.pipe[1], memory, 3 * PAGE) == 3 * PAGE);
    MUST(write(waiter.epoll[1], "x", 1) == 1 && write(waiter.poll[1], "x", 1) == 1);
    *waiter.word = 41;
    MUST(syscall(SYS_futex, waiter.word, FUTEX_WAKE, 1, 0, 0, 0) >= 0);
    for (int i = 0; i < 4; i++) {
        void *result;
        MUST(pthread_join(waiting[i], &result) == 0);
        printf("waited %ld\n", (long)result);
    }
    MUST(memcmp(waiter.buffer, memory, 3 * PAGE) == 0);

    /* Files and their names. */
    char *name = text("/var/tmp/userswap-calls-XXXXXX");
    int file = mkstemp(name);
    MUST(file >= 0);
    char *content = piece(8 * PAGE), *back = piece(8 * PAGE);
    fill(content, 8 * PAGE, 9);
    out();
    MUST(write(file, content, 8 * PAGE) == 8 * PAGE);
    out();
    MUST(pread(file, back, 8 * PAGE, 0) == 8 * PAGE);
    MUST(memcmp(content, back, 8 * PAGE) == 0);
    struct stat *status = piece(sizeof *status);
    out();
    MUST(stat(name, status) == 0 && status->st_size == 8 * PAGE);
    out();
    MUST(open(name, O_RDONLY) >= 0);
    char *other = piece(100), *link = piece(300);
    strcat(strcpy(other, name), "-2");
    out();
    MUST(symlink(name, other) == 0);
    out();
    ssize_t len = readlink(other, link, 300);
    MUST(len == (ssize_t)strlen(name) && memcmp(link, name, len) == 0);
    out();
    MUST(unlink(other) == 0);
    struct iovec *parts = piece(16 * sizeof *parts);
    for (int i = 0; i < 16; i++)
        parts[i] = (struct iovec){content + i * PAGE / 2, PAGE / 2};
    out();
    MUST(pwritev(file, parts, 16, 0) == 8 * PAGE);
    memset(back, 0, 8 * PAGE);
    for (int i = 0; i < 16; i++)
        parts[i].iov_base = back + i * PAGE / 2;
    out();
    MUST(preadv(file, parts, 16, 0) == 8 * PAGE);
    MUST(memcmp(content, back, 8 * PAGE) == 0);
    char *here = piece(PAGE);
    out();
    MUST(syscall(SYS_getcwd, here, PAGE) > 1 && here[0] == '/');
    int folder = open("/", O_RDONLY | O_DIRECTORY);
    char *entries = piece(2 * PAGE);
    out();
    MUST(syscall(SYS_getdents64, folder, entries, 2 * PAGE) > 0);
    puts("files");

    /* Sockets. */
    int pair[2];
    MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0);
    for (int round = 0; round < 8; round++) {
        struct msghdr *message = piece(sizeof *message);
        struct iovec *part = piece(sizeof *part);
        *part = (struct iovec){content + round * 512, 2 * PAGE};
        *message = (struct msghdr){.msg_iov = part, .msg_iovlen = 1};
        out();
        MUST(sendmsg(pair[0], message, 0) == 2 * PAGE);
        memset(back, 0, 2 * PAGE);
        part->iov_base = back;
        out();
        MUST(recvmsg(pair[1], message, 0) == 2 * PAGE);
        MUST(memcmp(back, content + round * 512, 2 * PAGE) == 0);
    }
    puts("sockets");

    /* Waiting. */
    int ends[2];
    MUST(pipe(ends) == 0 && write(ends[1], "y", 1) == 1);
    struct pollfd *polled = given(&(struct pollfd){.fd = ends[0], .events = POLLIN}, sizeof *polled);
    out();
    MUST(poll(polled, 1, 1000) == 1 && polled->revents == POLLIN);
    fd_set *set = piece(sizeof *set);
    struct timeval *span = given(&(struct timeval){1, 0}, sizeof *span);
    FD_ZERO(set);
    FD_SET(ends[0], set);
    out();
    MUST(select(ends[0] + 1, set, 0, 0, span) == 1 && FD_ISSET(ends[0], set));
    int epoll = epoll_create1(0);
    struct epoll_event *event = given(&(struct epoll_event){.events = EPOLLIN, .data.u64 = 9}, sizeof *event);
    out();
    MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], event) == 0);
    struct epoll_event *events = piece(8 * sizeof *events);
    out();
    MUST(epoll_wait(epoll, events, 8, 1000) == 1 && events->data.u64 == 9);
    struct timespec *nap = given(&(struct timespec){0, 1000}, sizeof *nap);
    out();
    MUST(syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, nap, nap) == 0);
    struct timespec *now = piece(sizeof *now);
    for (int clock = 0; clock < 12; clock++) {
        out();
        MUST(clock_gettime(clock, now) == 0 || errno == EINVAL);
    }
    uint32_t *word = given(&(uint32_t){5}, 4);
    out();
    MUST(syscall(SYS_futex, word, FUTEX_WAIT, 6, nap, 0, 0) == -1 && errno == EAGAIN);
    puts("waits");

    /* Signals. */
    struct sigaction *action = piece(sizeof *action), *before = piece(sizeof *before);
    action->sa_handler = on_alarm;
    sigfillset(&action->sa_mask);
    out();
    MUST(syscall(SYS_rt_sigprocmask, SIG_BLOCK, given(&(uint64_t){1 << (SIGALRM - 1)}, 8), piece(8), 8) == 0);
    MUST(sigaction(SIGALRM, action, before) == 0);
    struct itimerval *timer = given(&(struct itimerval){{0, 0}, {0, 1000}}, sizeof *timer);
    out();
    MUST(setitimer(ITIMER_REAL, timer, 0) == 0);
    sigset_t *none = piece(sizeof *none);
    sigemptyset(none);
    out();
    MUST(sigsuspend(none) == -1 && errno == EINTR && alarms == 1);
    puts("signals");

    /* Processes: a list of arguments and an environment, and what becomes of it. */
    char **arguments = piece(5 * sizeof *arguments), **environment = piece(3 * sizeof *environment);
    arguments[0] = text("sh"), arguments[1] = text("-c"), arguments[2] = text("test \"$WORD\" = there && exit 23");
    environment[0] = text("WORD=there");
    char *shell = text("/bin/sh");
    out();
    pid_t child = vfork();
    if (child == 0) {
        execve(shell, arguments, environment);
        _exit(1);
    }
    int *ended = piece(sizeof *ended);
    out();
    MUST(waitpid(child, ended, 0) == child && WIFEXITED(*ended) && WEXITSTATUS(*ended) == 23);
    puts("processes");

    /* What is wrong natively is wrong in the same way. */
    char *volatile nowhere = (char *)8;
    MUST(pread(file, nowhere, 100, 0) == -1 && errno == EFAULT);
    MUST(open(nowhere, O_RDONLY) == -1 && errno == EFAULT);
    MUST(writev(file, (void *)nowhere, 3) == -1 && errno == EFAULT);
    MUST(syscall(SYS_rt_sigprocmask, SIG_BLOCK, 8, 0, 8) == -1 && errno == EFAULT);
    MUST(syscall(SYS_rt_sigaction, SIGBUS, 8, 0, 8) == -1 && errno == EFAULT);
    puts("errors");
    unlink(name);
    total = mix(total + sum(memory, size));
    printf("%016lx\n", total);
    return 0;
}
