/* SIGBUS is the program's: it blocks it, handles it and asks what it has set, while it is used to bring memory in. */
#include "pattern.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>

static char *memory;
static size_t size;
static uint64_t total;
static sigjmp_buf back;
static volatile sig_atomic_t first, second, ticks, wrong;

static void sweep(void) { total = mix(total + sum(memory, size)); }

static int has_bus(const sigset_t *set) { return sigismember(set, SIGBUS); }

static int blocks_bus(void)
{
    sigset_t now;
    MUST(pthread_sigmask(SIG_BLOCK, 0, &now) == 0);
    return has_bus(&now);
}

/* What the kernel has, as everybody can see it. */
static int really_blocks_bus(void)
{
    char line[256];
    unsigned long mask = 0;
    FILE *status = fopen("/proc/thread-self/status", "r");
    MUST(status);
    while (fgets(line, sizeof line, status))
        sscanf(line, "SigBlk: %lx", &mask);
    fclose(status);
    return mask >> (SIGBUS - 1) & 1;
}

static void on_first(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info, (void)context;
    first++;
    siglongjmp(back, 1);
}
static void on_second(int signal)
{
    (void)signal;
    second++;
    siglongjmp(back, 2);
}
/* Touches what is out while the program believes that SIGBUS is blocked. */
static void on_tick(int signal)
{
    (void)signal;
    ticks++;
    for (int i = 0; i < 50; i++)
        if (memory[((size_t)ticks * 50 + i) * 977 % (size / PAGE) * PAGE + 4088] == 1 && memory[0] == 1)
            wrong++;
}

static void *thread(void *unused)
{
    (void)unused;
    int before = blocks_bus();
    sigset_t set;
    sigemptyset(&set), sigaddset(&set, SIGBUS);
    pthread_sigmask(before ? SIG_UNBLOCK : SIG_BLOCK, &set, 0);
    sweep();
    return (void *)(long)(before * 2 + blocks_bus());
}

int main(int argc, char **argv)
{
    size = (argc > 1 ? strtoul(argv[1], 0, 10) : 48) * MIB;
    if (argc > 2) {
        /* What was blocked when this program was executed. */
        printf("executed with %d\n", blocks_bus());
        return 0;
    }
    memory = map(size);
    fill(memory, size, 13);
    sweep();

    sigset_t bus, all, old;
    sigemptyset(&bus), sigaddset(&bus, SIGBUS), sigfillset(&all);
    MUST(sigprocmask(SIG_BLOCK, &bus, &old) == 0 && !has_bus(&old) && blocks_bus());
    sweep();
    MUST(sigprocmask(SIG_BLOCK, &all, &old) == 0 && has_bus(&old) && blocks_bus());
    sweep();
    MUST(sigprocmask(SIG_UNBLOCK, &bus, &old) == 0 && has_bus(&old) && !blocks_bus());
    MUST(sigprocmask(SIG_SETMASK, &bus, &old) == 0 && !has_bus(&old) && blocks_bus());
    MUST(syscall(SYS_rt_sigprocmask, 17, &bus, 0, 8) == -1 && blocks_bus());
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        MUST(blocks_bus());
        sweep();
        execl(argv[0], argv[0], "1", "again", (char *)0);
        _exit(9);
    }
    int status;
    MUST(waitpid(child, &status, 0) == child && status == 0);
    child = vfork();
    if (child == 0) {
        sigprocmask(SIG_UNBLOCK, &bus, 0);
        _exit(blocks_bus());
    }
    MUST(waitpid(child, &status, 0) == child && status == 0 && blocks_bus());
    pthread_t other;
    void *result;
    MUST(pthread_create(&other, 0, thread, 0) == 0 && pthread_join(other, &result) == 0);
    printf("thread %ld\n", (long)result);
    sigprocmask(SIG_UNBLOCK, &bus, 0);
    MUST(pthread_create(&other, 0, thread, 0) == 0 && pthread_join(other, &result) == 0);
    printf("thread %ld, blocked %d\n", (long)result, blocks_bus());
    if (argc <= 3 && getenv("USERSWAP_LIMIT"))
        fprintf(stderr, "really blocked: %d\n", really_blocks_bus());

    /* Handlers of its own. */
    char name[] = "/var/tmp/userswap-bus-XXXXXX";
    int file = mkstemp(name);
    unlink(name);
    MUST(file >= 0 && ftruncate(file, PAGE) == 0);
    char *cut = mmap(0, 2 * PAGE, PROT_READ, MAP_SHARED, file, 0);
    struct sigaction action = {.sa_sigaction = on_first, .sa_flags = SA_SIGINFO}, found;
    sigaddset(&action.sa_mask, SIGUSR1);
    MUST(sigaction(SIGBUS, &action, &found) == 0 && found.sa_handler == SIG_DFL);
    for (volatile int round = 0; round < 3; round++) {
        if (sigsetjmp(back, 1) == 0)
            wrong += cut[PAGE];
        sweep();
    }
    struct sigaction plain = {.sa_handler = on_second};
    MUST(sigaction(SIGBUS, &plain, &found) == 0 && found.sa_sigaction == on_first);
    MUST(found.sa_flags & SA_SIGINFO && sigismember(&found.sa_mask, SIGUSR1) && !sigismember(&found.sa_mask, SIGUSR2));
    child = vfork();
    if (child == 0) {
        signal(SIGBUS, SIG_DFL);
        _exit(0);
    }
    MUST(waitpid(child, &status, 0) == child && status == 0);
    if (sigsetjmp(back, 1) == 0)
        wrong += cut[PAGE];
    sweep();
    MUST(sigaction(SIGBUS, 0, &found) == 0 && found.sa_handler == on_second);
    printf("handled %d %d\n", first, second);

    /* Handlers of other signals, which want SIGBUS blocked, and calls that block it while they wait. */
    struct sigaction tick = {.sa_handler = on_tick, .sa_mask = all};
    MUST(sigaction(SIGALRM, &tick, 0) == 0);
    MUST(sigaction(SIGALRM, 0, &found) == 0 && has_bus(&found.sa_mask));
    struct itimerval often = {{0, 1000}, {0, 1000}}, never = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &often, 0);
    sweep();
    sigset_t but_alarm = all;
    sigdelset(&but_alarm, SIGALRM);
    for (int round = 0; round < 20; round++) {
        struct timespec wait = {0, 20000000};
        ppoll(0, 0, &wait, &but_alarm);
        pselect(0, 0, 0, 0, &wait, &but_alarm);
        sigsuspend(&but_alarm);
    }
    setitimer(ITIMER_REAL, &never, 0);
    sweep();
    MUST(!blocks_bus());
    printf("%s, wrong %d\n", ticks > 20 ? "ticks" : "no ticks", wrong);

    /* One handler for one signal, and then the end. */
    plain.sa_flags = SA_RESETHAND;
    MUST(sigaction(SIGBUS, &plain, 0) == 0);
    if (sigsetjmp(back, 1) == 0)
        wrong += cut[PAGE];
    sweep();
    MUST(sigaction(SIGBUS, 0, &found) == 0 && found.sa_handler == SIG_DFL);
    printf("handled %d %d, %016lx\n", first, second, total);
    fflush(stdout);
    child = fork();
    if (child == 0) {
        struct sigaction core = {.sa_handler = SIG_DFL};
        sigaction(SIGBUS, &core, 0);
        wrong += cut[PAGE];
        _exit(0);
    }
    MUST(waitpid(child, &status, 0) == child);
    printf("ended by %d\n", WIFSIGNALED(status) ? WTERMSIG(status) : -1);
    return 0;
}
