/* A library with system calls of its own. */
long calls(int times) {
    long sum = 0;
    for (int i = 0; i < times; i++) {
        long got;
        __asm__ volatile("syscall" : "=a"(got) : "a"(140), "D"(0), "S"(0) : "rcx", "r11", "memory"); /* getpriority */
        sum += got;
    }
    return sum;
}
