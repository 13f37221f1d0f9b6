/* Gives up root as tools that start services do: capabilities are kept over the change of user, and given up at the end. Or goes into
   a namespace of its own, which a process with more threads may not. */
#include "pattern.h"
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

enum { SIZE = 48 * MIB, NOBODY = 65534 };
static struct __user_cap_header_struct mine = {_LINUX_CAPABILITY_VERSION_3, 0};
static struct __user_cap_data_struct sets[2];

static void keep(uint32_t effective, uint32_t permitted)
{
    memset(sets, 0, sizeof sets);
    sets[0].effective = effective;
    sets[0].permitted = permitted;
    MUST(syscall(SYS_capset, &mine, sets) == 0);
}

static void change(void)
{
    uint32_t both = 1 << CAP_SETUID | 1 << CAP_SETGID;
    MUST(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0);
    MUST(setresgid(NOBODY, NOBODY, NOBODY) == 0);
    MUST(setresuid(NOBODY, NOBODY, NOBODY) == 0);
    /* Permitted still, and not in effect. */
    MUST(setgroups(0, 0) == -1);
    keep(both, both);
    MUST(setgroups(0, 0) == 0);
    MUST(setresuid(1000, NOBODY, NOBODY) == 0);
    keep(1 << CAP_SETGID, 1 << CAP_SETGID);
    MUST(setresuid(0, 0, 0) == -1);
    MUST(setresgid(1000, NOBODY, NOBODY) == 0);
    keep(0, 0);
    MUST(setgroups(0, 0) == -1 && setresgid(0, 0, 0) == -1);
}

int main(int argc, char **argv)
{
    MUST(argc == 2);
    int in_namespace = strcmp(argv[1], "namespace") == 0;
    MUST(!in_namespace || unshare(CLONE_NEWUSER) == 0);
    char *memory = map(SIZE);
    fill(memory, SIZE, 5);
    uint64_t total = sum(memory, SIZE);
    if (!in_namespace) {
        MUST(setgroups(0, 0) == 0);
        if (strcmp(argv[1], "few") == 0)
            keep(1 << CAP_SETUID | 1 << CAP_SETGID, 1 << CAP_SETUID | 1 << CAP_SETGID);
        change();
    }
    MUST(sum(memory, SIZE) == total);
    fill(memory, SIZE, 6);
    total = sum(memory, SIZE);
    MUST(sum(memory, SIZE) == total);
    printf("%s right\n", argv[1]);
    return 0;
}
