/* Counts its threads as Chromium's zygote does, by the links of their folder: before memory is short and after. */
#include "pattern.h"
#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <sys/wait.h>

static pthread_barrier_t both;

static void *wait_twice(void *unused)
{
    pthread_barrier_wait(&both);
    pthread_barrier_wait(&both);
    return unused;
}

static void *wait_for_ever(void *unused)
{
    for (;;)
        pause();
    return unused;
}

static void count(const char *when, int proc)
{
    struct stat at, path;
    struct statx extended;
    MUST(fstatat(proc, "self/task/", &at, 0) == 0);
    MUST(stat("/proc/self/task", &path) == 0);
    MUST(statx(proc, "self/task", 0, STATX_BASIC_STATS, &extended) == 0);
    printf("%s: %lu %lu %u\n", when, at.st_nlink - 2, path.st_nlink - 2, extended.stx_nlink - 2);
    MUST(extended.stx_uid == at.st_uid && extended.stx_ino == at.st_ino);
    MUST(fstatat(proc, "1/task", &at, 0) == 0 && at.st_nlink > 2);
}

static void count_by_descriptor(const char *when, int proc)
{
    struct stat at;
    MUST(fstatat(proc, "self/task/", &at, 0) == 0);
    printf("%s: %lu\n", when, at.st_nlink - 2);
}

/* Before memory is short, a child of one that has a thread more. */
static void fork_early(int proc)
{
    pthread_t thread;
    MUST(pthread_create(&thread, 0, wait_twice, 0) == 0);
    pthread_barrier_wait(&both);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        MUST(pthread_create(&thread, 0, wait_for_ever, 0) == 0);
        count("in an early child with another", proc);
        exit(0);
    }
    int status;
    MUST(waitpid(child, &status, 0) == child && status == 0);
    pthread_barrier_wait(&both);
    MUST(pthread_join(thread, 0) == 0);
}

int main(int argc, char **argv)
{
    MUST(argc > 1);
    size_t size = strtoul(argv[1], 0, 10) * MIB;
    int proc = open("/proc/", O_RDONLY | O_DIRECTORY);
    MUST(proc >= 0);
    MUST(pthread_barrier_init(&both, 0, 2) == 0);
    count("at first", proc);
    fork_early(proc);
    char *memory = map(size);
    fill(memory, size, 1);
    count("when memory is short", proc);
    pthread_t thread;
    MUST(pthread_create(&thread, 0, wait_twice, 0) == 0);
    pthread_barrier_wait(&both);
    count("with another", proc);
    pthread_barrier_wait(&both);
    MUST(pthread_join(thread, 0) == 0);
    printf("%016lx\n", sum(memory, size));
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        count("in a child", proc);
        MUST(pthread_create(&thread, 0, wait_twice, 0) == 0);
        pthread_barrier_wait(&both);
        count("in a child with another", proc);
        MUST(chroot("/proc/self/fd") == 0 || geteuid() != 0);
        count_by_descriptor("behind another root", proc);
        exit(0);
    }
    int status;
    MUST(waitpid(child, &status, 0) == child && status == 0);
    return 0;
}
