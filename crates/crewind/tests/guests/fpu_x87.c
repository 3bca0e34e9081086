// x87: the stack, control and status words, exceptions, fnstenv/fldenv, fnsave/frstor, long double arithmetic over
// system calls, precision and rounding modes, MMX.
// build: -O1 -mno-sse4 -frounding-math
#include "check.h"
#include <fenv.h>
#include <math.h>
int main(void) {
    long double sum = 0;
    for (int i = 1; i < 2000; i++) {
        sum += 1.0L / i;
        if (i % 100 == 0) CHECK(syscall(SYS_getppid) > 0);
    }
    printf("%La\n", sum);
    const int modes[] = {FE_TONEAREST, FE_DOWNWARD, FE_UPWARD, FE_TOWARDZERO};
    volatile long double third = 3;
    volatile double thirdd = 3;
    for (int i = 0; i < 4; i++) {
        fesetround(modes[i]);
        CHECK(syscall(SYS_getppid) > 0);
        printf("%La %a %ld\n", 1 / third, 1 / thirdd, lrintl(2.5L));
    }
    fesetround(FE_TONEAREST);
    feclearexcept(FE_ALL_EXCEPT);
    volatile double zero = 0;
    volatile double inf = 1 / zero;
    volatile long double linf = 1 / (long double)zero;
    CHECK(syscall(SYS_getppid) > 0);
    printf("flags %x %d %d\n", fetestexcept(FE_ALL_EXCEPT), isinf(inf) != 0, isinf(linf) != 0);
    struct {
        uint32_t word[7];
    } env = {{0}};
    asm volatile("fninit\n fld1\n fldpi\n fmulp\n fnstenv %0\n fldenv %0\n" : "+m"(env));
    printf("env cw %x sw %x tag %x\n", env.word[0] & 0xffff, env.word[1] & 0xffff, env.word[2] & 0xffff);
    unsigned char area[108];
    long double back = 0;
    asm volatile("fnsave %0\n frstor %0\n fstpt %1\n fninit" : "+m"(area), "=m"(back));
    printf("%La\n", back);
    unsigned short cw = 0x027f; // double precision
    volatile long double one = 1;
    asm volatile("fldcw %0" ::"m"(cw));
    long double narrow = one / third;
    CHECK(syscall(SYS_getppid) > 0);
    asm volatile("fninit");
    printf("%La\n", narrow);
    uint64_t a = 0x0102030405060708, b = 0x1010101010101010, c;
    asm volatile("movq %1, %%mm0\n movq %2, %%mm1\n mov $110, %%eax\n syscall\n paddb %%mm1, %%mm0\n movq %%mm0, %0\n emms"
                 : "=m"(c)
                 : "m"(a), "m"(b)
                 : "rax", "rcx", "r11", "memory");
    printf("mmx %016lx\n", c);
    unsigned short sw;
    asm volatile("fninit\n fldz\n fld1\n fcompp\n fnstsw %0" : "=a"(sw));
    printf("compare %x\n", sw & 0x4500);
    return 0;
}
