/* Signals that arrive inside a call: EINTR, SA_RESTART, remaining times, long jumps out of the handler, alternate stacks. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int ends[2];
static volatile int seen;
static sigjmp_buf back;
static void note(int s) { (void)s; seen++; }
static void feed(int s) { (void)s; seen++; if (write(ends[1], "x", 1) != 1) abort(); }
static void leave(int s) { (void)s; seen++; siglongjmp(back, 1); }

static void handle(void (*f)(int), int flags) {
    struct sigaction a = {.sa_handler = f, .sa_flags = flags};
    sigaction(SIGALRM, &a, 0);
}
static void soon(void) {
    struct itimerval t = {.it_value = {0, 3000}};
    setitimer(ITIMER_REAL, &t, 0);
}

int main(void) {
    char c;
    if (pipe(ends)) return 1;
    handle(note, 0);
    soon();
    if (read(ends[0], &c, 1) != -1 || errno != EINTR || seen != 1) return 2;
    handle(feed, SA_RESTART);
    soon();
    if (read(ends[0], &c, 1) != 1 || c != 'x' || seen != 2) return 3;
    handle(note, SA_RESTART);
    soon();
    struct timespec t = {5, 0}, left = {0, 0};
    if (nanosleep(&t, &left) != -1 || errno != EINTR || left.tv_sec != 4) return 4;
    soon();
    struct pollfd p = {ends[0], POLLIN, 0};
    if (poll(&p, 1, 1000) != -1 || errno != EINTR) return 5;
    sigset_t all, old;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &old);
    soon();
    if (sigsuspend(&old) != -1 || errno != EINTR || seen != 5) return 6;
    sigprocmask(SIG_SETMASK, &old, 0);
    handle(leave, SA_NODEFER);
    for (volatile int i = 0; i < 200; i++) {
        if (sigsetjmp(back, 1) == 0) {
            struct itimerval t = {.it_value = {0, 50 + i}};
            setitimer(ITIMER_REAL, &t, 0);
            for (;;) if (read(ends[0], &c, 1) != -1) return 7;
        }
    }
    if (seen != 205) return 8;
    stack_t s = {.ss_sp = malloc(65536), .ss_size = 65536}, was;
    if (sigaltstack(&s, 0)) return 9;
    handle(feed, SA_ONSTACK);
    soon();
    if (read(ends[0], &c, 1) != -1 || errno != EINTR) return 10;
    if (read(ends[0], &c, 1) != 1) return 11;
    if (sigaltstack(0, &was) || was.ss_sp != s.ss_sp) return 12;
    /* A timer that never stops, under calls that never block: most arrive inside the hook. */
    struct itimerval fast = {{0, 100}, {0, 100}};
    handle(note, SA_RESTART | SA_ONSTACK);
    setitimer(ITIMER_REAL, &fast, 0);
    seen = 0;
    long parent = getppid();
    for (long i = 0; seen < 500; i++) if (getppid() != parent) return 13;
    memset(&fast, 0, sizeof fast);
    setitimer(ITIMER_REAL, &fast, 0);
    puts("ok");
    return 0;
}
