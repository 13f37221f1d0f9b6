/* Children of every kind, while memory is swapped out and another thread goes on. */
#include "pattern.h"
#include <pthread.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>

extern char **environ;
static size_t size;
static volatile int done;

static void *churn(void *argument)
{
    uint64_t *memory = map(size), rounds = 0;
    (void)argument;
    fill(memory, size, 3);
    uint64_t first = sum(memory, size);
    do {
        MUST(sum(memory, size) == first);
        rounds++;
    } while (!done);
    return 0;
}

static int status_of(pid_t child)
{
    int status = -1;
    MUST(waitpid(child, &status, 0) == child);
    return status;
}

int main(int argc, char **argv)
{
    size = (argc > 1 ? strtoul(argv[1], 0, 10) : 24) * MIB;
    char *memory = map(size);
    fill(memory, size, 1);
    uint64_t first = sum(memory, size), total = first;
    pthread_t other;
    pthread_create(&other, 0, churn, 0);
    for (int round = 0; round < 12; round++) {
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) {
            /* A child that reads all, changes some, and has a child of its own. */
            MUST(sum(memory, size) == total);
            fill(memory + size / 4, size / 8, round);
            uint64_t mine = sum(memory, size);
            if (round % 4 == 0) {
                pid_t grandchild = fork();
                if (grandchild == 0)
                    _exit(sum(memory, size) == mine ? 5 : 6);
                MUST(status_of(grandchild) == 5 << 8);
            }
            _exit(round);
        }
        MUST(child > 0);
        /* The parent changes what the child must not see. */
        fill(memory + (round % 8) * (size / 8), size / 16, 100 + round);
        total = sum(memory, size);
        int status = status_of(child);
        printf("fork %d: %x\n", round, status);
        char text[64], *arguments[] = {"sh", "-c", text, 0};
        snprintf(text, sizeof text, "exit %d", round + 1);
        posix_spawn_file_actions_t actions;
        posix_spawn_file_actions_init(&actions);
        posix_spawn_file_actions_addclosefrom_np(&actions, 3);
        MUST(posix_spawnp(&child, "sh", &actions, 0, arguments, environ) == 0);
        printf("spawn %x\n", status_of(child));
        printf("system %x\n", system(text));
        child = vfork();
        if (child == 0)
            _exit(9);
        printf("vfork %x\n", status_of(child));
        FILE *pipe = popen("echo through a pipe", "r");
        MUST(pipe && fgets(text, sizeof text, pipe));
        printf("%s", text);
        printf("closed %x\n", pclose(pipe));
    }
    done = 1;
    pthread_join(other, 0);
    printf("%016lx\n", total);
    return 0;
}
