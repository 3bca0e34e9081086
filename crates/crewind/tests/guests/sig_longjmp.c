// Leaving handlers with siglongjmp and longjmp, many times; the mask comes back or stays as asked.
#include "check.h"
static sigjmp_buf back;
static volatile int count;
static void handler(int sig, siginfo_t *info, void *context) {
    (void)sig, (void)info, (void)context;
    count++;
    siglongjmp(back, count);
}
static int blocked(int sig) {
    sigset_t now;
    SYS(sigprocmask(SIG_BLOCK, 0, &now));
    return sigismember(&now, sig);
}
int main(void) {
    on_signal(SIGSEGV, handler, 0);
    on_signal(SIGUSR1, handler, 0);
    volatile int faults = 0;
    for (volatile int i = 0; i < 2000; i++) {
        if (sigsetjmp(back, 1) == 0)
            *(volatile int *)(uintptr_t)(i * 2) = i;
        else
            faults++;
    }
    printf("%d faults left by siglongjmp, blocked %d\n", faults, blocked(SIGSEGV));
    if (sigsetjmp(back, 0) == 0) raise(SIGUSR1);
    printf("without the mask: blocked %d\n", blocked(SIGUSR1));
    jmp_buf plain;
    volatile int rounds = 0;
    int value = setjmp(plain);
    if (value < 1000) {
        rounds++;
        longjmp(plain, value + 1);
    }
    printf("%d rounds of longjmp\n", rounds);
    return 0;
}
