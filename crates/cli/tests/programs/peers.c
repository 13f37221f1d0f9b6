/* A process looks at the memory of another: what it gets is right, or it is told that there is nothing to be had; it never
 * gets something else. */
#include "pattern.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>

static char *memory, buffer[MIB];

/* What `asked` bytes at `at` are to be, and how many of them were got. */
static void check(const char *at, ssize_t got)
{
    MUST(got > 0 || errno == EIO || errno == EFAULT);
    MUST(got <= 0 || memcmp(buffer, at, got) == 0);
}

int main(int argc, char **argv)
{
    size_t size = 40 * MIB;
    int everything = argc > 1 && strcmp(argv[1], "everything") == 0;
    int ready[2], status;
    memory = map(size);
    MUST(pipe(ready) == 0);
    pid_t child = fork();
    if (child == 0) {
        fill(memory, size, 4);
        page_out(memory + 4 * MIB, 4 * MIB);
        MUST(write(ready[1], "", 1) == 1);
        for (;;)
            pause();
    }
    MUST(read(ready[0], buffer, 1) == 1);
    fill(memory, size, 4);
    for (int mib = 0; mib < 40; mib += 4) {
        char *at = memory + mib * MIB;
        struct iovec to = {buffer, MIB}, from = {at, MIB};
        ssize_t got = process_vm_readv(child, &to, 1, &from, 1, 0);
        MUST(!everything || got == MIB);
        check(at, got);
        /* Writes what is there already. */
        from.iov_base = at + MIB;
        to.iov_base = at + MIB;
        got = process_vm_writev(child, &to, 1, &from, 1, 0);
        MUST(got == MIB || !everything && (got > 0 || errno == EFAULT));
    }
    char name[64];
    snprintf(name, sizeof name, "/proc/%d/mem", child);
    int file = open(name, O_RDWR);
    MUST(file >= 0);
    MUST(ptrace(PTRACE_ATTACH, child, 0, 0) == 0 && waitpid(child, &status, 0) == child && WIFSTOPPED(status));
    for (char *at = memory; at < memory + size; at += 16 * PAGE) {
        check(at, pread(file, buffer, 3 * PAGE, (off_t)at));
        errno = 0;
        long word = ptrace(PTRACE_PEEKDATA, child, at + 4 * PAGE, 0);
        memcpy(buffer, &word, sizeof word);
        check(at + 4 * PAGE, errno ? -1 : (ssize_t)sizeof word);
        memcpy(&word, at + 5 * PAGE, sizeof word);
        MUST(ptrace(PTRACE_POKEDATA, child, at + 5 * PAGE, word) == 0 || errno == EIO);
    }
    MUST(ptrace(PTRACE_DETACH, child, 0, 0) == 0);
    MUST(kill(child, SIGKILL) == 0 && waitpid(child, &status, 0) == child);
    puts("looked");
    return 0;
}
