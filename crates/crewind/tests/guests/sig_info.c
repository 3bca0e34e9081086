// What handlers are told: siginfo of kill, sigqueue, tgkill, timers, children; flags of sigaction.
#include "check.h"
static volatile int calls;
static volatile siginfo_t seen; // glibc declares kill() leaf: without volatile it is not read again
static void handler(int sig, siginfo_t *info, void *context) {
    CHECK(sig == info->si_signo);
    CHECK(context != 0);
    seen = *info;
    calls++;
}
static volatile int depth, deepest;
static void nodefer(int sig, siginfo_t *info, void *context) {
    (void)info, (void)context;
    if (++depth > deepest) deepest = depth;
    if (depth < 5) raise(sig);
    depth--;
}
int main(void) {
    on_signal(SIGUSR1, handler, 0);
    SYS(kill(getpid(), SIGUSR1));
    CHECK(calls == 1 && seen.si_code == SI_USER && seen.si_pid == getpid() && seen.si_uid == getuid());
    union sigval value = {.sival_ptr = (void *)0x123456789abcUL};
    SYS(sigqueue(getpid(), SIGUSR1, value));
    CHECK(calls == 2 && seen.si_code == SI_QUEUE && seen.si_value.sival_ptr == value.sival_ptr);
    SYS((int)syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGUSR1));
    CHECK(calls == 3 && seen.si_code == SI_TKILL);
    // Blocked standard signals merge, real-time signals queue in order.
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMIN + 1);
    SYS(sigprocmask(SIG_BLOCK, &set, 0));
    on_signal(SIGRTMIN + 1, handler, 0);
    for (int i = 0; i < 3; i++) {
        SYS(kill(getpid(), SIGUSR1));
        value.sival_int = i;
        SYS(sigqueue(getpid(), SIGRTMIN + 1, value));
    }
    CHECK(calls == 3);
    sigset_t pending;
    SYS(sigpending(&pending));
    CHECK(sigismember(&pending, SIGUSR1) && sigismember(&pending, SIGRTMIN + 1));
    SYS(sigprocmask(SIG_UNBLOCK, &set, 0));
    CHECK(calls == 3 + 1 + 3);
    SYS(sigpending(&pending));
    CHECK(!sigismember(&pending, SIGUSR1));
    // SA_NODEFER, SA_RESETHAND, SIG_IGN, sigaction's old value.
    on_signal(SIGUSR2, nodefer, SA_NODEFER);
    raise(SIGUSR2);
    CHECK(deepest == 5);
    on_signal(SIGUSR2, handler, SA_RESETHAND);
    raise(SIGUSR2);
    struct sigaction old;
    SYS(sigaction(SIGUSR2, 0, &old));
    CHECK(old.sa_handler == SIG_DFL);
    signal(SIGUSR2, SIG_IGN);
    raise(SIGUSR2);
    SYS(sigaction(SIGUSR1, 0, &old));
    CHECK(old.sa_sigaction == handler && (old.sa_flags & SA_SIGINFO));
    FAILS(sigaction(SIGKILL, &old, 0), EINVAL);
    FAILS(kill(getpid(), 65), EINVAL);
    // SIGCHLD tells who ended and how.
    on_signal(SIGCHLD, handler, SA_RESTART);
    calls = 0;
    pid_t pid = SYS(fork());
    if (pid == 0) _exit(17);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(calls == 1 && seen.si_code == CLD_EXITED && seen.si_pid == pid && seen.si_status == 17);
    // Timers.
    on_signal(SIGALRM, handler, 0);
    calls = 0;
    struct itimerval once = {.it_value = {0, 2000}};
    SYS(setitimer(ITIMER_REAL, &once, 0));
    while (!calls) pause();
    CHECK(seen.si_code == SI_KERNEL);
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    event.sigev_value.sival_int = 77;
    timer_t timer;
    SYS(timer_create(CLOCK_MONOTONIC, &event, &timer));
    calls = 0;
    struct itimerspec spec = {.it_value = {0, 2000000}};
    SYS(timer_settime(timer, 0, &spec, 0));
    while (!calls) sleep_ms(1);
    CHECK(seen.si_code == SI_TIMER && seen.si_value.sival_int == 77);
    SYS(timer_delete(timer));
    puts("all signals told what they should");
    return 0;
}
