/* Every way to make a process, and a thread by hand. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
extern char **environ;

static int expect(pid_t child, int code) {
    int status;
    return child > 0 && waitpid(child, &status, __WALL) == child && WIFEXITED(status) && WEXITSTATUS(status) == code;
}
static int on_own_stack(void *arg) {
    *(int *)arg += 1;
    return getppid() > 0 ? 5 : 6;
}

int main(int argc, char **argv) {
    if (argc > 1) return atoi(argv[1]);
    char *again[] = {argv[0], "9", 0};
    pid_t child = fork();
    if (child == 0) { if (getpid() == getppid()) _exit(1); exit(3); }
    if (!expect(child, 3)) return 1;
    for (int i = 0; i < 20; i++) {
        volatile int local = i;
        child = vfork();
        if (child == 0) { local += 100; execv(argv[0], again); _exit(1); }
        if (!expect(child, 9) || local != i + 100) return 2;
    }
    child = vfork();
    if (child == 0) { execv("/nowhere/at/all", again); _exit(errno == ENOENT ? 4 : 1); }
    if (!expect(child, 4)) return 3;
    if (posix_spawn(&child, argv[0], 0, 0, again, environ) || !expect(child, 9)) return 4;
    if (posix_spawn(&child, "/nowhere", 0, 0, again, environ) != ENOENT) return 5;
    if (WEXITSTATUS(system("exit 6")) != 6) return 6;
    FILE *f = popen("echo hi", "r");
    char line[8] = "";
    if (!fgets(line, 8, f) || strcmp(line, "hi\n") || pclose(f)) return 7;
    char *stack = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int word = 0;
    child = clone(on_own_stack, stack + 65536, CLONE_VM | SIGCHLD, &word);
    if (!expect(child, 5) || word != 1) return 8;
    child = clone(on_own_stack, stack + 65536, CLONE_VM | CLONE_VFORK | SIGCHLD, &word);
    if (!expect(child, 5) || word != 2) return 9;
    child = clone(on_own_stack, stack + 65536, SIGCHLD, &word);
    if (!expect(child, 5) || word != 2) return 10;
    /* By number, with nothing known at the site. */
    child = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (child == 0) _exit(11);
    if (!expect(child, 11)) return 11;
    struct clone_args args = {.exit_signal = SIGCHLD};
    child = syscall(SYS_clone3, &args, sizeof args);
    if (child == 0) _exit(12);
    if (!expect(child, 12)) return 12;
    child = syscall(SYS_fork);
    if (child == 0) _exit(13);
    if (!expect(child, 13)) return 13;
    if (syscall(12345) != -1 || errno != ENOSYS) return 14;
    if (syscall(SYS_read, -1, 0, 0) != -1 || errno != EBADF) return 15;
    puts("ok");
    fflush(stdout);
    char *last[] = {argv[0], "0", 0};
    execv(argv[0], last);
    return 16;
}
