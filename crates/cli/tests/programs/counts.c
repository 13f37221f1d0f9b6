/* Counts its threads as Chromium's zygote does, by the links of their folder: before memory is short and after. */
#include "pattern.h"
#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>

static pthread_barrier_t both;

static void *wait_twice(void *unused)
{
    pthread_barrier_wait(&both);
    pthread_barrier_wait(&both);
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

int main(int argc, char **argv)
{
    MUST(argc > 1);
    size_t size = strtoul(argv[1], 0, 10) * MIB;
    int proc = open("/proc/", O_RDONLY | O_DIRECTORY);
    MUST(proc >= 0);
    count("at first", proc);
    char *memory = map(size);
    fill(memory, size, 1);
    count("when memory is short", proc);
    pthread_t thread;
    MUST(pthread_barrier_init(&both, 0, 2) == 0);
    MUST(pthread_create(&thread, 0, wait_twice, 0) == 0);
    pthread_barrier_wait(&both);
    count("with another", proc);
    pthread_barrier_wait(&both);
    MUST(pthread_join(thread, 0) == 0);
    printf("%016lx\n", sum(memory, size));
    return 0;
}
