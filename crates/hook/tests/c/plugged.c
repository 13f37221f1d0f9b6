/* Loads a library later, twice over, and calls what makes system calls in it. */
#include <dlfcn.h>
#include <stdio.h>
int main(int argc, char **argv) {
    for (int i = 0; i < 2; i++) {
        void *plugin = dlopen(argv[1], RTLD_NOW);
        if (argc < 2 || !plugin) return 1;
        long (*calls)(int) = (long (*)(int))dlsym(plugin, "calls");
        if (!calls || calls(1000) != 20000) return 2;
        if (dlclose(plugin)) return 3;
    }
    puts("ok");
    return 0;
}
