/* A child that dumps core in the current folder: each page of its memory is there as it was, or, if it was swapped out, as
 * nothing; never as something else. */
#include "pattern.h"
#include <elf.h>
#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>

int main(void)
{
    size_t size = 40 * MIB;
    char *memory = map(size), *zeros = map(PAGE);
    fill(memory, size, 3);
    pid_t child = fork();
    if (child == 0) {
        struct rlimit all = {RLIM_INFINITY, RLIM_INFINITY};
        MUST(setrlimit(RLIMIT_CORE, &all) == 0);
        fill(memory, size, 4);
        page_out(memory, size / 2);
        abort();
    }
    int status;
    MUST(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    MUST(WCOREDUMP(status));
    char name[64];
    snprintf(name, sizeof name, "core.%d", child);
    int core = open(name, O_RDONLY);
    if (core < 0) {
        strcpy(name, "core");
        core = open(name, O_RDONLY);
    }
    MUST(core >= 0);
    fill(memory, size, 4);
    Elf64_Ehdr header;
    MUST(pread(core, &header, sizeof header, 0) == sizeof header);
    size_t seen = 0, right = 0, empty = 0;
    for (int i = 0; i < header.e_phnum; i++) {
        Elf64_Phdr part;
        MUST(pread(core, &part, sizeof part, (off_t)(header.e_phoff + i * sizeof part)) == sizeof part);
        for (size_t at = 0; part.p_type == PT_LOAD && at < part.p_filesz; at += PAGE) {
            char page[PAGE], *address = (char *)part.p_vaddr + at;
            if (address < memory || address >= memory + size)
                continue;
            MUST(pread(core, page, PAGE, (off_t)(part.p_offset + at)) == PAGE);
            seen++;
            right += memcmp(page, address, PAGE) == 0;
            empty += memcmp(page, zeros, PAGE) == 0;
        }
    }
    unlink(name);
    MUST(seen == size / PAGE && right + empty == seen && right > 0);
    puts("dumped");
    return 0;
}
