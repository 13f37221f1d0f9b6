/* A program that, with much memory in use, permits itself few system calls and goes on; or has a child that does. */
#include "pattern.h"
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static char *memory;
static size_t size;

/* Permits what `code` does: to all threads with a flag of seccomp, to this one otherwise. */
static void confine(struct sock_filter *code, size_t count, int all_threads)
{
    struct sock_fprog program = {count, code};
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    if (all_threads)
        MUST(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0);
    else
        MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

static void to_little(int all_threads)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 5, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 4, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_futex, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_munmap, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    confine(code, sizeof code / sizeof *code, all_threads);
}

static void go_on(void)
{
    for (int round = 0; round < 3; round++) {
        char *more = map(4 * MIB);
        fill(more, 4 * MIB, round);
        munmap(more + MIB, MIB);
        printf("%016lx\n", mix(sum(memory, size) + sum(more, MIB)));
        fflush(stdout);
    }
}

static void wait_for(pid_t child)
{
    int status = -1;
    MUST(child > 0 && waitpid(child, &status, 0) == child);
    printf("child %x\n", status);
}

int main(int argc, char **argv)
{
    size = (argc > 1 ? strtoul(argv[1], 0, 10) : 16) * MIB;
    const char *who = argc > 2 ? argv[2] : "thread";
    memory = map(size);
    for (int round = 0; round < 3; round++)
        fill(memory, size, round);
    printf("%016lx\n", sum(memory, size));
    fflush(stdout);
    if (!strcmp(who, "vfork")) {
        /* It has this process's memory until it is another program. */
        pid_t child = vfork();
        if (child == 0) {
            struct sock_filter all = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
            confine(&all, 1, 1);
            execlp("echo", "echo", "a child of vfork", (char *)0);
            _exit(1);
        }
        wait_for(child);
    } else if (!strcmp(who, "clone")) {
        /* Made so that no library knows of it. */
        pid_t child = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
        if (child == 0) {
            to_little(1);
            go_on();
            _exit(0);
        }
        wait_for(child);
    } else if (!strcmp(who, "forks")) {
        /* All is still permitted, which only the filter knows; children have children. */
        struct sock_filter all = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
        confine(&all, 1, 1);
        pid_t child = fork();
        if (child == 0) {
            pid_t grandchild = fork();
            if (grandchild == 0) {
                go_on();
                _exit(0);
            }
            wait_for(grandchild);
            fflush(stdout);
            _exit(0);
        }
        wait_for(child);
    } else {
        to_little(!strcmp(who, "all"));
    }
    go_on();
    return 0;
}
