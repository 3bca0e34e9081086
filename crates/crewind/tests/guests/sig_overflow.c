// Stack overflow caught on an alternate stack, and left with siglongjmp, five times.
// build: -O0 -Wno-infinite-recursion
#include "check.h"
static sigjmp_buf back;
static volatile int depth;
static void handler(int sig, siginfo_t *info, void *context) {
    ucontext_t *uc = context;
    CHECK(sig == SIGSEGV);
    long distance = (char *)info->si_addr - (char *)uc->uc_mcontext.gregs[REG_RSP];
    CHECK(distance > -65536 && distance < 65536);
    siglongjmp(back, 1);
}
static int dive(int n) {
    volatile char frame[1000];
    frame[0] = (char)n;
    depth = n;
    int result = n < INT_MAX ? dive(n + 1) + frame[0] : 0;
    return result;
}
int main(void) {
    SYS(setrlimit(RLIMIT_STACK, &(struct rlimit){1 << 20, RLIM_INFINITY}) == 0 ||
        setrlimit(RLIMIT_STACK, &(struct rlimit){1 << 20, 1 << 20}));
    static char stack[65536];
    SYS(sigaltstack(&(stack_t){.ss_sp = stack, .ss_size = sizeof stack}, 0));
    on_signal(SIGSEGV, handler, SA_ONSTACK);
    for (int i = 0; i < 5; i++) {
        if (sigsetjmp(back, 1) == 0)
            dive(0);
        else
            printf("overflow %d\n", i);
        CHECK(depth > 500 && depth < 1100);
    }
    return 0;
}
