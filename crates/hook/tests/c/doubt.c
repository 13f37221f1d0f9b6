/* Code without unwind information that is called, and data among code that is not: both hold the bytes of a system call. */
#include <stdio.h>
#include <unistd.h>
extern long bare(void);
extern const unsigned char table[];
__asm__(".text\n.p2align 4\n"
        "table: .byte 0x0f, 0x05, 0xc3, 0x90, 0xb8, 0x6e, 0x00, 0x00, 0x00, 0x0f, 0x05, 0xff, 0xff, 0x06, 0x0e\n"
        /* As much as the codecs of a video library are. */
        ".fill 0x500000, 1, 0xcc\n"
        ".p2align 4\n.globl bare\n"
        "bare: mov $110, %eax\nsyscall\nret\n.p2align 4\n");
int main(void) {
    if (bare() != getppid()) return 1;
    puts("ok");
    return 0;
}
