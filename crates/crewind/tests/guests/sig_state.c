// All registers, flags, x87 and vector state survive a handler that destroys them; the handler starts with the
// state that the ABI promises (direction flag clear); changes in the context's vector state take effect.
// build: -O1 -mavx
#include "check.h"
#include <immintrin.h>
static int change;
static void handler(int sig, siginfo_t *info, void *context) {
    ucontext_t *uc = context;
    unsigned long flags;
    (void)sig, (void)info;
    asm volatile("pushf; pop %0" : "=r"(flags));
    CHECK(!(flags & 0x400));
    asm volatile("fninit; fld1; fldpi; vpcmpeqd %%xmm0, %%xmm0, %%xmm0; vmovups %%xmm0, %%xmm7; vzeroall" ::
                     : "memory", "xmm0", "xmm7");
    unsigned mxcsr = 0x7f80;
    asm volatile("ldmxcsr %0" : : "m"(mxcsr));
    if (change) {
        struct _fpstate *fp = (struct _fpstate *)uc->uc_mcontext.fpregs;
        CHECK(fp->mxcsr == 0x3f80);
        ((uint32_t *)&fp->_xmm[3])[0] = 0xabcdef01;
        uc->uc_mcontext.gregs[REG_R12] = 0x1212;
        uc->uc_mcontext.gregs[REG_EFL] |= 0x800; // overflow
    }
}
int main(void) {
    on_signal(SIGUSR1, handler, 0);
    long pid = getpid();
    for (change = 0; change < 2; change++) {
        unsigned mxcsr_in = 0x3f80, mxcsr_out;
        float in[8] = {1, 2, 3, 4, 5, 6, 7, 8}, out[8] = {0};
        uint64_t regs[6], flags;
        double x87 = 0;
        unsigned short cw_in = 0x0f7f, cw_out;
        asm volatile(
            "ldmxcsr %[min]\n fninit\n fldcw %[cin]\n fldpi\n"
            "vmovups %[in], %%ymm3\n vmovups %[in], %%ymm15\n"
            "mov $0x100, %%rbx\n mov $0x200, %%r12\n mov $0x300, %%r13\n mov $0x400, %%r14\n mov $0x500, %%r15\n"
            "mov $62, %%eax\n mov %[pid], %%rdi\n mov $10, %%esi\n"
            "cmp $62, %%eax\n stc\n"
            "syscall\n"
            "pushf\n pop %[flags]\n"
            "mov %%rax, 0(%[regs])\n mov %%rbx, 8(%[regs])\n mov %%r12, 16(%[regs])\n mov %%r13, 24(%[regs])\n"
            "mov %%r14, 32(%[regs])\n mov %%r15, 40(%[regs])\n"
            "stmxcsr %[mout]\n fnstcw %[cout]\n fstpl %[x87]\n vaddps %%ymm15, %%ymm3, %%ymm3\n vmovups %%ymm3, %[out]\n"
            "vzeroupper\n fninit\n"
            : [flags] "=&r"(flags), [mout] "=m"(mxcsr_out), [out] "=m"(out), [x87] "=m"(x87), [cout] "=m"(cw_out)
            : [min] "m"(mxcsr_in), [in] "m"(in), [pid] "r"(pid), [regs] "r"(regs), [cin] "m"(cw_in)
            : "rax", "rbx", "rcx", "rdi", "rsi", "r11", "r12", "r13", "r14", "r15", "memory", "xmm3", "xmm15");
        mxcsr_in = 0x1f80;
        asm volatile("ldmxcsr %0" : : "m"(mxcsr_in));
        printf("rax %lx rbx %lx r12 %lx r13 %lx r14 %lx r15 %lx flags %lx mxcsr %x cw %x pi %a\n", regs[0], regs[1], regs[2],
               regs[3], regs[4], regs[5], flags & 0xcd5, mxcsr_out, cw_out, x87);
        for (int i = 0; i < 8; i++) printf("%a ", out[i]);
        puts("");
    }
    return 0;
}
