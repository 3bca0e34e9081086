// Signals across threads: pthread_kill and tgkill to a thread, kill to the process with all threads ready to take it, one timer for
// the process and one per thread, and sigwait in a thread. Queued signals all arrive; handlers touch racing memory.
// varies
#include "par.h"
#include <sys/signalfd.h>
static volatile long racy[32];
static _Atomic long direct, any, waited, sent_direct, sent_any, sent_waited, ticks;
static _Atomic int tids[MAX_THREADS], waiting;
static __thread volatile uint64_t handled;
static void on_direct(int sig, siginfo_t *info, void *context) {
    (void)sig, (void)context;
    direct++;
    racy[info->si_value.sival_int & 31]++;
    handled = mix(handled, (uint64_t)racy[3]);
}
static void on_any(int sig, siginfo_t *info, void *context) {
    (void)sig, (void)context;
    any++;
    racy[3] += info->si_value.sival_int;
    handled = mix(handled, (uint64_t)any);
}
static void on_tick(int sig, siginfo_t *info, void *context) {
    (void)sig, (void)info, (void)context;
    ticks++;
    handled = mix(handled, (uint64_t)racy[4]++);
}
static int queue(int tid, int sig, int value) {
    siginfo_t info = {.si_code = SI_QUEUE};
    info.si_signo = sig;
    info.si_pid = getpid();
    info.si_uid = getuid();
    info.si_value.sival_int = value;
    return tid ? (int)syscall(SYS_rt_tgsigqueueinfo, getpid(), tid, sig, &info) : (int)syscall(SYS_rt_sigqueueinfo, getpid(), sig, &info);
}
static void queue_surely(int tid, int sig, int value) {
    while (queue(tid, sig, value) == -1) {
        CHECK(errno == EAGAIN);
        sched_yield();
    }
}
static void *sig_waiter(void *arg) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 2);
    uint64_t seen = (uint64_t)(intptr_t)arg;
    waiting = 1;
    for (;;) {
        siginfo_t info;
        // Signals with handlers interrupt the wait.
        int got = sigwaitinfo(&set, &info);
        seen = mix(seen, (uint64_t)got);
        if (got == -1 && errno == EINTR) continue;
        CHECK(got == SIGRTMIN + 2);
        if (info.si_value.sival_int == -1) return (void *)seen;
        waited++;
        seen = mix(seen, (uint64_t)info.si_value.sival_int + (uint64_t)racy[5]++);
    }
}
static uint64_t body(int me) {
    tids[me] = (int)syscall(SYS_gettid);
    int other = (me + 1) % par_threads;
    unsigned spins = 0;
    uint64_t seen = (uint64_t)me;
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR2};
    event._sigev_un._tid = tids[me];
    SYS(timer_create(CLOCK_MONOTONIC, &event, &timer));
    struct itimerspec often = {{0, 700000}, {0, 300000}};
    SYS(timer_settime(timer, 0, &often, 0));
    while (!tids[other]) par_relax(&spins);
    for (int i = 0; i < par_rounds; i++) {
        queue_surely(tids[other], SIGRTMIN, i);
        sent_direct++;
        if (i % 4 == 0) {
            queue_surely(0, SIGRTMIN + 1, i);
            sent_any++;
        }
        if (i % 8 == 0) {
            queue_surely(0, SIGRTMIN + 2, i);
            sent_waited++;
        }
        if (i % 16 == 0) CHECK(pthread_kill(par_all[other].id, SIGUSR2) == 0);
        for (int k = 0; k < 50; k++) racy[k & 31] += k;
        seen = mix(seen, (uint64_t)racy[i & 31]);
    }
    // Everybody stays until all has arrived.
    static _Atomic int through;
    through++;
    while (through < par_threads || direct < sent_direct || any < sent_any || waited < sent_waited) par_relax(&spins);
    SYS(timer_delete(timer));
    // A SIGUSR2 may still come, from the process's timer too: not any more, and then to nobody.
    sigset_t set;
    sigfillset(&set);
    pthread_sigmask(SIG_BLOCK, &set, 0);
    return mix(seen, handled);
}
int main(int argc, char **argv) {
    par_args(argc, argv, 3, 300);
    on_signal(SIGRTMIN, on_direct, SA_RESTART);
    on_signal(SIGRTMIN + 1, on_any, SA_RESTART);
    on_signal(SIGUSR2, on_tick, SA_RESTART);
    on_signal(SIGALRM, on_tick, SA_RESTART);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 2);
    pthread_sigmask(SIG_BLOCK, &set, 0);
    pthread_t waiter;
    CHECK(pthread_create(&waiter, 0, sig_waiter, (void *)5) == 0);
    while (!waiting) sched_yield();
    struct itimerval often = {{0, 1000}, {0, 500}};
    SYS(setitimer(ITIMER_REAL, &often, 0));
    par_begin(body);
    for (int i = 0; i < par_threads; i++) CHECK(pthread_join(par_all[i].id, 0) == 0);
    memset(&often, 0, sizeof often);
    SYS(setitimer(ITIMER_REAL, &often, 0));
    queue_surely(0, SIGRTMIN + 2, -1);
    void *seen;
    CHECK(pthread_join(waiter, &seen) == 0);
    printf("waiter %016lx; seen:", (uint64_t)seen);
    for (int i = 0; i < par_threads; i++) printf(" %016lx", par_all[i].digest);
    printf("\n%ld direct, %ld any, %ld waited for, %ld ticks\n", direct, any, waited, ticks);
    CHECK(direct == sent_direct && any == sent_any && waited == sent_waited);
    return 0;
}
