// SSE, AVX and AVX-512 registers, MXCSR over many system calls; denormals and rounding; xsave, xsavec, fxsave by
// hand; unmasked exceptions.
// build: -O1
#include "check.h"
#include <cpuid.h>
#include <immintrin.h>
static sigjmp_buf back;
static void on_fpe(int sig, siginfo_t *info, void *context) {
    ucontext_t *uc = context;
    (void)sig;
    printf("SIGFPE code %d mxcsr flags %x\n", info->si_code, uc->uc_mcontext.fpregs->mxcsr & 0x3f);
    siglongjmp(back, 1);
}
#define GETPPID "mov $110, %%eax\n syscall\n"
__attribute__((target("avx512f"))) static void avx512(void) {
    static uint8_t in[64] __attribute__((aligned(64))), out[3][64] __attribute__((aligned(64)));
    for (int i = 0; i < 64; i++) in[i] = (uint8_t)(i * 7);
    uint16_t mask;
    asm volatile("vmovdqa64 %3, %%zmm1\n vmovdqa64 %3, %%zmm17\n vpaddd %%zmm17, %%zmm17, %%zmm31\n"
                 "mov $0xa5a5, %%eax\n kmovw %%eax, %%k3\n" GETPPID GETPPID
                 "vmovdqa64 %%zmm1, %0\n vmovdqa64 %%zmm17, 64+%0\n vmovdqa64 %%zmm31, 128+%0\n kmovw %%k3, %%eax\n"
                 "mov %%ax, %1\n vzeroall\n"
                 : "=m"(out), "=m"(mask)
                 : "m"(mask), "m"(in)
                 : "rax", "rcx", "r11", "memory");
    CHECK(memcmp(in, out[0], 64) == 0 && memcmp(in, out[1], 64) == 0 && mask == 0xa5a5);
    CHECK(out[2][4] == (uint8_t)(in[4] * 2));
}
__attribute__((target("avx"))) static void avx(void) {
    static uint8_t in[16][32] __attribute__((aligned(32))), out[16][32] __attribute__((aligned(32)));
    for (int i = 0; i < 512; i++) in[i / 32][i % 32] = (uint8_t)(i * 31 + i / 256);
    asm volatile("vmovdqa (%0), %%ymm0\n vmovdqa 32(%0), %%ymm1\n vmovdqa 64(%0), %%ymm2\n vmovdqa 224(%0), %%ymm7\n"
                 "vmovdqa 256(%0), %%ymm8\n vmovdqa 480(%0), %%ymm15\n" GETPPID
                 "vmovdqa %%ymm0, (%1)\n vmovdqa %%ymm1, 32(%1)\n vmovdqa %%ymm2, 64(%1)\n vmovdqa %%ymm7, 224(%1)\n"
                 "vmovdqa %%ymm8, 256(%1)\n vmovdqa %%ymm15, 480(%1)\n vzeroupper\n"
                 :
                 : "r"(in), "r"(out)
                 : "rax", "rcx", "r11", "memory", "xmm0", "xmm1", "xmm2", "xmm7", "xmm8", "xmm15");
    CHECK(memcmp(in[0], out[0], 96) == 0 && memcmp(in[7], out[7], 64) == 0 && memcmp(in[15], out[15], 32) == 0);
}
__attribute__((target("xsave"))) static void xsave_by_hand(void) {
    static uint8_t area[8192] __attribute__((aligned(64)));
    __m128 four = _mm_set1_ps(4), got;
    memset(area, 0xcc, sizeof area);
    memset(area + 512, 0, 64);
    asm volatile("movups %2, %%xmm9\n mov $3, %%eax\n xor %%edx, %%edx\n xsave64 (%1)\n"
                 "xorps %%xmm9, %%xmm9\n mov $110, %%eax\n syscall\n mov $3, %%eax\n xor %%edx, %%edx\n xrstor64 (%1)\n movups %%xmm9, %0\n"
                 : "=m"(got)
                 : "r"(area), "m"(four)
                 : "rax", "rcx", "rdx", "r11", "memory", "xmm9");
    CHECK(memcmp(&four, &got, 16) == 0);
    printf("xsave: xstate_bv %lx, mxcsr %x, sse bytes %02x%02x\n", *(uint64_t *)(area + 512) & 2, *(uint32_t *)(area + 24),
           area[160 + 9 * 16 + 3], area[160 + 9 * 16 + 2]);
    asm volatile("fxsave64 %0" : "=m"(area));
    CHECK(*(uint32_t *)(area + 24) == _mm_getcsr());
    asm volatile("fxrstor64 %0" : : "m"(area));
    // Reset to the initial state.
    memset(area, 0, sizeof area);
    *(uint32_t *)(area + 24) = 0x1f80;
    *(uint16_t *)area = 0x37f;
    asm volatile("movups %2, %%xmm9\n mov $3, %%eax\n xor %%edx, %%edx\n xrstor64 (%1)\n movups %%xmm9, %0\n"
                 : "=m"(got)
                 : "r"(area), "m"(four)
                 : "rax", "rdx", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                   "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    CHECK(_mm_movemask_ps(_mm_cmpeq_ps(got, _mm_setzero_ps())) == 15);
}
int main(void) {
    volatile float out = 0;
    float tiny = 1e-40f;
    for (int ftz = 0; ftz < 2; ftz++) {
        _mm_setcsr(ftz ? 0x9fc0 : 0x1f80);
        CHECK(syscall(SYS_getppid) > 0);
        volatile float t = tiny;
        out = t * 0.5f;
        printf("denormal: %a mxcsr %x\n", (double)out, _mm_getcsr());
    }
    for (unsigned rc = 0; rc < 4; rc++) {
        _mm_setcsr(0x1f80 | rc << 13);
        CHECK(syscall(SYS_getppid) > 0);
        volatile float three = 3;
        float third = 1 / three;
        _mm_setcsr(0x1f80);
        printf("%a\n", (double)third);
    }
    avx();
    unsigned a, b, c, d;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) && b >> 16 & 1) avx512();
    xsave_by_hand();
    on_signal(SIGFPE, on_fpe, 0);
    if (sigsetjmp(back, 1) == 0) {
        _mm_setcsr(0x1f80 & ~0x200u); // unmask divide by zero
        volatile float zero = 0;
        out = 1 / zero;
        puts("not reached");
    }
    printf("mxcsr after: %x\n", _mm_getcsr() & 0xffc0);
    _mm_setcsr(0x1f80);
    puts("vector state works");
    return 0;
}
