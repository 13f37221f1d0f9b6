/* What has the system use a program's memory without a system call that names it, or makes faults impossible to handle. */
#include "pattern.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>

enum { SIZE = 40 * MIB };
static char *memory;
static uint64_t total;
static volatile int started, ended;
/* The thread beside this one, if there is one. */
static long other;

/* All of it is still what it was, and the system finds it. */
static void right(void)
{
    MUST(sum(memory, SIZE) == total);
    int ends[2];
    MUST(pipe(ends) == 0);
    for (int i = 0; i < 64; i++) {
        char page[PAGE];
        MUST(write(ends[1], memory + (size_t)i * (SIZE / 64), PAGE) == PAGE && read(ends[0], page, PAGE) == PAGE);
        MUST(memcmp(page, memory + (size_t)i * (SIZE / 64), PAGE) == 0);
    }
}

static int beside(void *unused)
{
    (void)unused;
    started = 1;
    while (!ended)
        ;
    syscall(SYS_exit, 0);
    return 0;
}

static ucontext_t here, there;
static void on_own_stack(void) { MUST(getppid() > 0 && write(1, "", 0) == 0); }

static void odd(const char *how)
{
    if (strcmp(how, "rings") == 0) {
        struct io_uring_params parameters = {0};
        int ring = (int)syscall(SYS_io_uring_setup, 4, &parameters);
        MUST(ring >= 0 || errno == ENOSYS || errno == EPERM);
    } else if (strcmp(how, "aio") == 0) {
        aio_context_t context = 0;
        MUST(syscall(SYS_io_setup, 4, &context) == 0 || errno == ENOSYS);
    } else if (strcmp(how, "filter") == 0) {
        struct sock_filter all = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
        struct sock_fprog program = {1, &all};
        MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
        MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
    } else if (strcmp(how, "memory") == 0) {
        int self = open("/proc/self/mem", O_RDONLY);
        char page[PAGE];
        MUST(self >= 0);
        for (int i = 0; i < 16; i++) {
            char *from = memory + (size_t)i * (SIZE / 16);
            MUST(pread(self, page, PAGE, (off_t)from) == PAGE && memcmp(page, from, PAGE) == 0);
        }
    } else if (strcmp(how, "unknown") == 0) {
        /* Like a driver's request of old. */
        MUST(ioctl(1, 0x4b99, memory) == -1);
    } else if (strcmp(how, "stack") == 0) {
        MUST(getcontext(&there) == 0);
        there.uc_stack.ss_sp = memory + SIZE / 2;
        there.uc_stack.ss_size = 64 * PAGE;
        there.uc_link = &here;
        makecontext(&there, on_own_stack, 0);
        MUST(swapcontext(&here, &there) == 0);
        total = sum(memory, SIZE);
    } else if (strcmp(how, "thread") == 0) {
        char *stack = mmap(0, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
        other = clone(beside, stack + MIB, CLONE_VM | CLONE_THREAD | CLONE_SIGHAND, 0);
        MUST(other > 0);
        while (!started)
            ;
    } else if (strcmp(how, "thread3") == 0) {
        char *stack = mmap(0, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
        struct clone_args arguments = {
            .flags = CLONE_VM | CLONE_THREAD | CLONE_SIGHAND, .stack = (uint64_t)stack, .stack_size = MIB};
        /* The new thread has registers as they were, and another stack: it must not return. */
        long result = SYS_clone3;
        register int (*beside_at)(void *) __asm__("r12") = beside;
        __asm__ volatile("syscall\n\ttest %%rax, %%rax\n\tjnz 1f\n\txor %%edi, %%edi\n\tcall *%%r12\n1:"
                         : "+a"(result)
                         : "D"(&arguments), "S"(sizeof arguments), "r"(beside_at)
                         : "rcx", "rdx", "r8", "r9", "r10", "r11", "memory");
        other = result;
        MUST(result > 0);
        while (!started)
            ;
    } else if (strcmp(how, "events") == 0) {
        /* Asked for, and no use made of it: what counts is that it may be. */
        struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_EVENT_UNMAP};
        int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
        MUST(fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0);
        close(fd);
    } else if (strcmp(how, "faults") == 0) {
        MUST(syscall(SYS_userfaultfd, O_CLOEXEC | 1) >= 0);
    } else {
        MUST(!"a way that is known");
    }
}

int main(int argc, char **argv)
{
    MUST(argc == 3);
    int early = strcmp(argv[2], "early") == 0;
    memory = map(SIZE);
    if (early)
        odd(argv[1]);
    fill(memory, SIZE, 21);
    total = sum(memory, SIZE);
    right();
    if (!early)
        odd(argv[1]);
    right();
    ended = 1;
    /* Whoever shares its thread-local memory has told of its end before this one does. */
    while (other && syscall(SYS_tgkill, getpid(), other, 0) == 0)
        ;
    printf("%s right\n", argv[1]);
    return 0;
}
