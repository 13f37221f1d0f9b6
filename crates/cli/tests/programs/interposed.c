/* Has functions of its own in the place of libc's, as Firefox's sandbox does; they may wait for what its threads hold. Nobody but it
   calls them. */
#include "pattern.h"
#include <signal.h>

static volatile int calls;

int sigaction(int signal, const struct sigaction *action, struct sigaction *before)
{
    (void)signal, (void)action, (void)before;
    calls++;
    return -1;
}

int pthread_sigmask(int how, const sigset_t *mask, sigset_t *before)
{
    (void)how, (void)mask, (void)before;
    calls++;
    return 0;
}

int main(int argc, char **argv)
{
    MUST(argc > 1);
    size_t size = strtoul(argv[1], 0, 10) * MIB;
    char *memory = map(size);
    fill(memory, size, 1);
    printf("%016lx\n", sum(memory, size));
    printf("%d calls\n", calls);
    return 0;
}
