/* A program that loads a library where little is left to do so with: few system calls, or little stack. */
#include "pattern.h"
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

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
    if (strcmp(argv[1], "writes") == 0) {
        only_read();
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
