/* Single reads and writes that are as large as all of the program's memory. */
#include "pattern.h"
#include <fcntl.h>
#include <pthread.h>
#include <sys/resource.h>

static char *memory;
static size_t size;
static int file;

/* What a write leaves behind, and reads of all of it, of more, from its midst, and of its last bytes. */
static void reads(void)
{
    MUST(lseek(file, 0, SEEK_SET) == 0);
    MUST(read(file, memory, size) == (ssize_t)size);
    MUST(lseek(file, 0, SEEK_CUR) == (off_t)size);
    printf("read %016lx\n", sum(memory, size));
    MUST(read(file, memory, size) == 0);
    off_t from = 5 * MIB + 77;
    MUST(lseek(file, from, SEEK_SET) == from);
    MUST(read(file, memory, size) == (ssize_t)size - from);
    MUST(lseek(file, 0, SEEK_CUR) == (off_t)size);
    printf("less %016lx\n", sum(memory, size));
    MUST(pread(file, memory + 3, size - 3, 1) == (ssize_t)size - 3);
    printf("at %016lx\n", sum(memory, size));
    MUST(pread(file, memory, size, (off_t)size) == 0);
}

/* Its end is a page that cannot be written. */
static void fails(void)
{
    char *end = memory + size - PAGE;
    MUST(mprotect(end, PAGE, PROT_READ) == 0);
    MUST(pread(file, memory, size, 0) == (ssize_t)size - PAGE);
    MUST(pread(file, end, 2 * MIB, 0) == -1);
    MUST(mprotect(end, PAGE, PROT_READ | PROT_WRITE) == 0);
    MUST(read(1000, memory, size) == -1);
    puts("fails");
}

/* Past the page cache. */
static void direct(const char *name)
{
    int past = open(name, O_RDONLY | O_DIRECT);
    if (past >= 0) {
        MUST(read(past, memory, size) == (ssize_t)size);
        close(past);
    } else {
        MUST(pread(file, memory, size, 0) == (ssize_t)size);
    }
    printf("direct %016lx\n", sum(memory, size));
}

/* A file may become no longer than this: a write that meets it comes short, and brings no signal. */
static void limited(const char *name)
{
    int shorter = open(name, O_RDWR | O_TRUNC);
    struct rlimit before, now;
    MUST(getrlimit(RLIMIT_FSIZE, &before) == 0);
    now = before;
    now.rlim_cur = 7 * MIB;
    MUST(setrlimit(RLIMIT_FSIZE, &now) == 0);
    MUST(pwrite(shorter, memory, size, 0) == 7 * MIB);
    MUST(setrlimit(RLIMIT_FSIZE, &before) == 0);
    MUST(pwrite(shorter, memory, size, 0) == (ssize_t)size);
    close(shorter);
    puts("limited");
}

static void *feed(void *end)
{
    static char bytes[3 * PAGE + 5];
    for (int round = 0; round < 900; round++) {
        fill(bytes, sizeof bytes / 8 * 8, round);
        for (size_t done = 0; done < sizeof bytes;)
            done += (size_t)write((int)(intptr_t)end, bytes + done, sizeof bytes - done);
    }
    close((int)(intptr_t)end);
    return 0;
}

/* A pipe, asked for all there is each time. */
static void pipes(void)
{
    int ends[2];
    pthread_t feeder;
    size_t got = 0;
    MUST(pipe(ends) == 0);
    MUST(pthread_create(&feeder, 0, feed, (void *)(intptr_t)ends[1]) == 0);
    for (ssize_t n; (n = read(ends[0], memory + got, size - got)) > 0;)
        got += (size_t)n;
    MUST(pthread_join(feeder, 0) == 0);
    printf("pipe %zu %016lx\n", got, sum(memory, got / 8 * 8));
    close(ends[0]);
}

int main(int argc, char **argv)
{
    size = (argc > 1 ? strtoul(argv[1], 0, 10) : 48) * MIB;
    memory = map(size);
    fill(memory, size, 7);
    char name[] = "/var/tmp/userswap-large-XXXXXX";
    file = mkstemp(name);
    MUST(file >= 0);
    MUST(pwrite(file, memory, size, 0) == (ssize_t)size);
    reads();
    direct(name);
    fails();
    pipes();
    reads();
    limited(name);
    unlink(name);
    return 0;
}
