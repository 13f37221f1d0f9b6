/* A program with signal handlers of its own, for faults too, which run on memory that is swapped out. */
#include "pattern.h"
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/time.h>

static char *memory;
static size_t size;
static sigjmp_buf back;
static volatile sig_atomic_t segv, bus, ticks;
static volatile uint64_t seen;

static void on_fault(int signal, siginfo_t *info, void *context)
{
    (void)context;
    if (signal == SIGSEGV)
        segv++;
    else
        bus++;
    seen += (uint64_t)info->si_addr % PAGE + (unsigned)info->si_code;
    siglongjmp(back, 1);
}

/* Lets a program that watches its writes go on. */
static void on_write(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    segv++;
    mprotect((void *)((uintptr_t)info->si_addr & ~(uintptr_t)(PAGE - 1)), PAGE, PROT_READ | PROT_WRITE);
}

static void on_tick(int signal)
{
    (void)signal;
    ticks++;
    seen += memory[(size_t)ticks * 977 * PAGE % size] == 0 ? 0 : 0;
}

static void install(int signal, void (*handler)(int, siginfo_t *, void *))
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    MUST(sigaction(signal, &action, 0) == 0);
    struct sigaction now;
    MUST(sigaction(signal, 0, &now) == 0 && now.sa_sigaction == handler);
}

int main(int argc, char **argv)
{
    size = (argc > 1 ? strtoul(argv[1], 0, 10) : 48) * MIB;
    memory = map(size);
    install(SIGSEGV, on_fault);
    install(SIGBUS, on_fault);
    /* The handlers' stack is in memory that is swapped out. */
    stack_t stack = {.ss_sp = memory + size - 64 * PAGE, .ss_size = 64 * PAGE};
    fill(memory, size - 64 * PAGE, 5);
    MUST(sigaltstack(&stack, 0) == 0);
    uint64_t total = 0;
    char *guard = mmap(0, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char name[] = "/var/tmp/userswap-handlers-XXXXXX";
    int file = mkstemp(name);
    unlink(name);
    MUST(file >= 0 && ftruncate(file, PAGE) == 0);
    char *cut = mmap(0, 2 * PAGE, PROT_READ, MAP_SHARED, file, 0);
    for (int round = 0; round < 5; round++) {
        total = mix(total + sum(memory, size - 64 * PAGE));
        if (sigsetjmp(back, 1) == 0)
            guard[round] = 1;
        total = mix(total + sum(memory, size - 64 * PAGE));
        if (sigsetjmp(back, 1) == 0)
            seen += cut[PAGE + round];
        /* SIGBUS and SIGSEGV blocked, while memory is brought in. */
        sigset_t all, before;
        sigfillset(&all);
        sigprocmask(SIG_BLOCK, &all, &before);
        total = mix(total + sum(memory, size - 64 * PAGE));
        sigprocmask(SIG_SETMASK, &before, 0);
    }
    printf("faults %d %d %lu\n", segv, bus, seen);
    /* Writes are watched: each page's first one. */
    install(SIGSEGV, on_write);
    segv = 0;
    for (int round = 0; round < 2; round++) {
        MUST(mprotect(memory, size / 8, PROT_READ) == 0);
        total = mix(total + sum(memory, size - 64 * PAGE));
        for (size_t page = round; page < size / 8 / PAGE; page += 7)
            memory[page * PAGE + 8] ^= 0x55;
        MUST(mprotect(memory, size / 8, PROT_READ | PROT_WRITE) == 0);
        total = mix(total + sum(memory, size - 64 * PAGE));
    }
    printf("writes %d\n", segv);
    signal(SIGALRM, on_tick);
    struct itimerval often = {{0, 1000}, {0, 1000}};
    setitimer(ITIMER_REAL, &often, 0);
    for (int round = 0; round < 4; round++)
        total = mix(total + sum(memory, size - 64 * PAGE));
    memset(&often, 0, sizeof often);
    setitimer(ITIMER_REAL, &often, 0);
    printf("%s %016lx\n", ticks > 0 ? "ticks" : "no ticks", total);
    return 0;
}
