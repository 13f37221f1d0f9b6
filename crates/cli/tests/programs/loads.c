/* A program that loads a library where little is left to do so with: few system calls, or little stack. */
#include "pattern.h"
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>

static void confine(struct sock_filter *code, size_t count)
{
    struct sock_fprog program = {count, code};
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

/* Ends the process where it opens a file for writing. */
static void only_read(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_open, 0, 2),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
        BPF_STMT(BPF_JMP | BPF_JA, 2),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2])),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, O_WRONLY | O_RDWR, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    confine(code, sizeof code / sizeof *code);
}

/* Ends the process where it locks a file. */
static void lock_nothing(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_flock, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    confine(code, sizeof code / sizeof *code);
}

enum { ANSWER = 0x616e73 };

static void answer(int signal, siginfo_t *info, void *context)
{
    (void)signal;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    long result = syscall(info->si_syscall, registers[REG_RDI], registers[REG_RSI], registers[REG_RDX],
                          registers[REG_R10], 0, ANSWER);
    registers[REG_RAX] = result < 0 ? -errno : result;
}

/* Answers where files are opened, as sandboxes do that ask another process. */
static void answer_opens(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_open, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[5])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ANSWER, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO};
    MUST(sigaction(SIGSYS, &action, 0) == 0);
    confine(code, sizeof code / sizeof *code);
}

static void load(void)
{
    printf("%s\n", dlopen("libresolv.so.2", RTLD_NOW) ? "loaded" : dlerror());
    fflush(stdout);
}

static void *thread(void *how)
{
    if (strcmp(how, "locks") == 0)
        lock_nothing();
    load();
    return 0;
}

int main(int argc, char **argv)
{
    MUST(argc == 2);
    int writes = strcmp(argv[1], "writes") == 0;
    if (writes || strcmp(argv[1], "answers") == 0) {
        writes ? only_read() : answer_opens();
        load();
        return 0;
    }
    pthread_attr_t attributes;
    pthread_t it;
    pthread_attr_init(&attributes);
    if (strcmp(argv[1], "stack") == 0)
        MUST(pthread_attr_setstacksize(&attributes, PTHREAD_STACK_MIN) == 0);
    MUST(pthread_create(&it, &attributes, thread, argv[1]) == 0);
    pthread_join(it, 0);
    return 0;
}
