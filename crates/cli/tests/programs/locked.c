/* Memory that the program has locked: it stays, and what is swapped out of it comes back. */
#include "pattern.h"
#include <sys/resource.h>

static char *memory;
static size_t size;

static void sweep(void) { MUST(sum(memory, size) == sum(memory, size)); }

int main(int argc, char **argv)
{
    size = (argc > 1 ? strtoul(argv[1], 0, 10) : 48) * (size_t)MIB;
    memory = map(size);
    fill(memory, size, 3);
    uint64_t whole = sum(memory, size);
    size_t part = 4 * MIB;
    /* As much as an ordinary user may. */
    struct rlimit most;
    if (geteuid() != 0 && getrlimit(RLIMIT_MEMLOCK, &most) == 0 && most.rlim_cur < 2 * part)
        part = most.rlim_cur / 2 / PAGE * PAGE;

    /* Locked while it is swapped out: there from then on. */
    uint64_t content = sum(memory, part);
    page_out(memory, part);
    MUST(mlock(memory, part) == 0);
    MUST(resident_pages(memory, part) == part / PAGE);
    sweep();
    MUST(resident_pages(memory, part) == part / PAGE);
    MUST(sum(memory, part) == content);
    MUST(munlock(memory, part) == 0);
    sweep();
    MUST(sum(memory, part) == content);
    puts("mlock");

    /* Each page when it is touched. */
    char *lazy = map(part);
    fill(lazy, part / 2, 5);
    content = sum(lazy, part);
    page_out(lazy, part);
    MUST(mlock2(lazy, part, MLOCK_ONFAULT) == 0);
    MUST(sum(lazy, part) == content);
    sweep();
    MUST(resident_pages(lazy, part / 2) == part / 2 / PAGE);
    MUST(munlock(lazy, part) == 0);
    sweep();
    MUST(sum(lazy, part) == content);
    puts("mlock2");

    if (argc > 2) {
        /* All that comes, and all there is. */
        MUST(mlockall(MCL_FUTURE) == 0);
        char *later = map(part);
        MUST(resident_pages(later, part) == part / PAGE);
        fill(later, part, 6);
        content = sum(later, part);
        sweep();
        MUST(resident_pages(later, part) == part / PAGE);
        MUST(munlockall() == 0);
        puts("future");
        MUST(mlockall(MCL_CURRENT) == 0);
        MUST(resident_pages(memory, 16 * MIB) == 16 * MIB / PAGE);
        sweep();
        MUST(resident_pages(memory, 16 * MIB) == 16 * MIB / PAGE);
        MUST(munlockall() == 0);
        sweep();
        MUST(sum(later, part) == content);
        puts("all");
    }
    MUST(sum(memory, size) == whole);
    printf("%016lx\n", whole);
    return 0;
}
