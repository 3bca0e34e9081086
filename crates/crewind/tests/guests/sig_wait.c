// Signals taken without handlers: sigsuspend, sigwaitinfo, sigtimedwait, signalfd, ppoll and pselect masks.
#include "check.h"
#include <sys/select.h>
#include <sys/signalfd.h>
static volatile int runs;
static void handler(int sig) {
    (void)sig;
    runs++;
}
int main(void) {
    sigset_t usr, empty, old;
    sigemptyset(&empty);
    sigemptyset(&usr);
    sigaddset(&usr, SIGUSR1);
    sigaddset(&usr, SIGRTMIN);
    SYS(sigprocmask(SIG_BLOCK, &usr, &old));
    signal(SIGUSR1, handler);
    raise(SIGUSR1);
    CHECK(runs == 0);
    FAILS(sigsuspend(&old), EINTR);
    CHECK(runs == 1);
    raise(SIGUSR1);
    siginfo_t info;
    CHECK(sigwaitinfo(&usr, &info) == SIGUSR1 && info.si_pid == getpid());
    CHECK(runs == 1);
    struct timespec short_time = {0, 5000000};
    FAILS(sigtimedwait(&usr, &info, &short_time), EAGAIN);
    pid_t pid = SYS(fork());
    if (pid == 0) {
        sleep_ms(20);
        SYS(sigqueue(getppid(), SIGRTMIN, (union sigval){.sival_int = 99}));
        _exit(0);
    }
    CHECK(sigwaitinfo(&usr, &info) == SIGRTMIN && info.si_value.sival_int == 99 && info.si_pid == pid);
    print_end("sender", pid);
    int fd = SYS(signalfd(-1, &usr, SFD_CLOEXEC | SFD_NONBLOCK));
    struct signalfd_siginfo fdinfo[4];
    FAILS(read(fd, fdinfo, sizeof fdinfo), EAGAIN);
    SYS(sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 1}));
    SYS(sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 2}));
    raise(SIGUSR1);
    ssize_t n = SYS(read(fd, fdinfo, sizeof fdinfo));
    CHECK(n == 3 * (ssize_t)sizeof fdinfo[0]);
    for (int i = 0; i < 3; i++) printf("signalfd: %d value %d\n", fdinfo[i].ssi_signo, fdinfo[i].ssi_int);
    struct pollfd pfd = {.fd = fd, .events = POLLIN};
    raise(SIGUSR1);
    CHECK(poll(&pfd, 1, 0) == 1);
    FAILS(ppoll(0, 0, &(struct timespec){5, 0}, &old), EINTR);
    CHECK(runs == 2);
    raise(SIGUSR1);
    FAILS(pselect(0, 0, 0, 0, &(struct timespec){5, 0}, &old), EINTR);
    CHECK(runs == 3);
    sigset_t now;
    SYS(sigprocmask(SIG_BLOCK, 0, &now));
    CHECK(sigismember(&now, SIGUSR1));
    puts("waiting works");
    return 0;
}
