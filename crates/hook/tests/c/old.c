/* Data among code that look like jumps to what looks like system calls, as in programs of Haskell and of Mono; and code without unwind
   information that does call the system, by the old way. Not to be run: a kernel may refuse that. */
extern long bare(void);
__asm__(".text\n.p2align 4\n"
        /* Bytes that seem to lead into the data below. */
        ".byte 0xe8\n.long old - . - 4\n"
        ".byte 0xe8\n.long layout - . - 4\n"
        "ud2\n"
        "old: .byte 0xcd, 0x80, 0x04, 0x00, 0xc3\n"
        /* Behind it is no instruction. */
        "layout: .byte 0x0f, 0x05, 0x04, 0x00, 0x00, 0x00, 0x00, 0x00, 0x1e, 0xc3\n"
        /* The end of a table of GHC's, in front of the function it describes. */
        ".byte 0xe8\n.long table - . - 4\nud2\n.p2align 4\n"
        ".quad 0x183\n.long 30\n.byte 0x68\ntable: .byte 0xfc, 0x0f, 0x05\n"
        "mov 24(%rbp), %rax\njmp *(%rbp)\n"
        ".p2align 4\n.globl bare\n"
        "bare: mov $20, %eax\njmp 1f\n.p2align 4\n1: int $0x80\nret\n.p2align 4\n");
int main(void) { return (int)bare(); }
