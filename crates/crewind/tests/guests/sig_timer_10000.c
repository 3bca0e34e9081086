// Ten thousand timer signals while computing; the result must not feel them. The count of loop rounds between
// signals varies, so it is only hashed into a line that replay must repeat.
// varies
// timeout: 120
#include "check.h"
static volatile int ticks;
static volatile uint64_t where, progress;
static void handler(int sig, siginfo_t *info, void *context) {
    ucontext_t *uc = context;
    (void)sig, (void)info;
    where = where * 31 + (uint64_t)uc->uc_mcontext.gregs[REG_RAX] + progress;
    ticks++;
}
int main(void) {
    on_signal(SIGALRM, handler, SA_RESTART);
    struct itimerval timer = {.it_value = {0, 100}, .it_interval = {0, 100}};
    SYS(setitimer(ITIMER_REAL, &timer, 0));
    uint64_t state = 1234567, sum = 0;
    while (ticks < 10000) {
        for (int i = 0; i < 1000; i++) sum += next_random(&state) >> 60;
        progress++;
    }
    timer = (struct itimerval){0};
    SYS(setitimer(ITIMER_REAL, &timer, 0));
    printf("%d ticks, %lu rounds, sum %lu, where %016lx\n", ticks, progress, sum, where);
    return 0;
}
