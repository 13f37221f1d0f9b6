/* Begins to do what inline mode cannot follow when most of its memory is swapped out. */
#include "pattern.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { PART = 16 * PAGE };

static char *memory;
static size_t size;
static uint64_t total;
static sigjmp_buf back;
static volatile sig_atomic_t handled;
static volatile int over, ready;

/* The system reads and writes memory that is out. */
static void the_system_finds(char *from, char *to, size_t bytes)
{
    int ends[2];
    MUST(pipe(ends) == 0);
    for (size_t at = 0; at < bytes; at += PAGE) {
        MUST(write(ends[1], from + at, PAGE) == PAGE && read(ends[0], to + at, PAGE) == PAGE);
    }
    close(ends[0]), close(ends[1]);
}

/* All of it is what it was, also once it has all been out again; the kernel finds it, too. */
static void right(void)
{
    static char copy[PART];
    MUST(sum(memory, size) == total);
    for (size_t at = 0; at + PART <= size; at += 2 * MIB) {
        page_out(memory + at, PART);
        the_system_finds(memory + at, copy, PART);
        MUST(memcmp(memory + at, copy, PART) == 0);
        memset(copy, 0, PART);
    }
    MUST(sum(memory, size) == total);
}

/* Whatever the system says to it. */
static void odd(void)
{
    struct io_uring_params parameters = {0};
    long ring = syscall(SYS_io_uring_setup, 4, &parameters);
    MUST(ring >= 0 || errno == ENOSYS || errno == EPERM);
}

/* Works on a part of its own while memory goes over, and makes calls. */
static void *worker(void *number)
{
    size_t part = 2 * MIB;
    char *own = memory + size + (size_t)(long)number * part;
    uint64_t seed = 100 * (long)number;
    for (int round = 0; round < 40 || over < 40; round++) {
        if (over)
            over++;
        fill(own, part, seed + round);
        uint64_t before = sum(own, part);
        page_out(own, part / 2);
        /* To the other half, as the system finds it. */
        the_system_finds(own, own + part / 2, PART);
        MUST(memcmp(own, own + part / 2, PART) == 0);
        fill(own, part, seed + round);
        MUST(sum(own, part) == before);
        __atomic_fetch_add(&ready, 1, __ATOMIC_SEQ_CST);
    }
    return 0;
}

static void threads(void)
{
    pthread_t workers[3];
    for (long i = 0; i < 3; i++)
        MUST(pthread_create(&workers[i], 0, worker, (void *)i) == 0);
    while (ready < 9)
        usleep(1000);
    odd();
    over = 1;
    right();
    for (int i = 0; i < 3; i++)
        MUST(pthread_join(workers[i], 0) == 0);
}

static void child(pid_t made)
{
    if (made == 0) {
        right();
        memory[7] ^= 1;
        _exit(sum(memory, size) == total);
    }
    int status;
    MUST(made > 0 && waitpid(made, &status, 0) == made && status == 0);
}

static void forks(void)
{
    odd();
    page_out(memory, size);
    child(fork());
    right();
    pid_t grandparent = fork();
    if (grandparent == 0) {
        child(fork());
        right();
        _exit(0);
    }
    int status;
    MUST(waitpid(grandparent, &status, 0) == grandparent && status == 0);
}

static void on_bus(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    handled += info->si_code > 0;
    siglongjmp(back, 1);
}

static int blocks_bus(void)
{
    sigset_t now;
    MUST(pthread_sigmask(SIG_BLOCK, 0, &now) == 0);
    return sigismember(&now, SIGBUS);
}

/* SIGBUS is the program's before and after. */
static void bus(const char *self)
{
    sigset_t set;
    sigemptyset(&set), sigaddset(&set, SIGBUS);
    struct sigaction action = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO}, found;
    MUST(sigaction(SIGBUS, &action, 0) == 0);
    MUST(pthread_sigmask(SIG_BLOCK, &set, 0) == 0);
    odd();
    MUST(blocks_bus());
    MUST(sigaction(SIGBUS, 0, &found) == 0 && found.sa_sigaction == on_bus);
    right();
    pid_t made = fork();
    if (made == 0) {
        MUST(blocks_bus() && sum(memory, size) == total);
        execl(self, self, "1", "blocked", (char *)0);
        _exit(9);
    }
    int status;
    MUST(waitpid(made, &status, 0) == made && status == 0);
    MUST(pthread_sigmask(SIG_UNBLOCK, &set, 0) == 0 && !blocks_bus());
    char name[] = "/var/tmp/userswap-over-XXXXXX";
    int file = mkstemp(name);
    unlink(name);
    MUST(file >= 0 && ftruncate(file, PAGE) == 0);
    char *cut = mmap(0, 2 * PAGE, PROT_READ, MAP_SHARED, file, 0);
    for (volatile int round = 0; round < 3; round++) {
        if (sigsetjmp(back, 1) == 0)
            MUST(cut[PAGE] == 77);
        right();
    }
    printf("handled %d\n", (int)handled);
    MUST(signal(SIGBUS, SIG_DFL) != SIG_ERR);
    fflush(stdout);
    made = fork();
    if (made == 0) {
        MUST(cut[PAGE] == 77);
        _exit(0);
    }
    MUST(waitpid(made, &status, 0) == made);
    printf("ended by %d\n", WIFSIGNALED(status) ? WTERMSIG(status) : -1);
}

int main(int argc, char **argv)
{
    MUST(argc == 3);
    size = strtoul(argv[1], 0, 10) * MIB;
    if (strcmp(argv[2], "blocked") == 0)
        return blocks_bus() ? 0 : 4;
    memory = map(size + 6 * MIB);
    fill(memory, size, 3);
    total = sum(memory, size);
    right();
    if (strcmp(argv[2], "once") == 0)
        odd();
    else if (strcmp(argv[2], "threads") == 0)
        threads();
    else if (strcmp(argv[2], "forks") == 0)
        forks();
    else
        bus(argv[0]);
    right();
    printf("%s right\n", argv[2]);
    return 0;
}
