// Which blocking calls restart after a handler with SA_RESTART, which return EINTR always.
#include "check.h"
#include <sys/epoll.h>
#include <sys/select.h>
#include <linux/futex.h>
static volatile int fired;
static int pipe_fds[2];
static int feed; // write to the pipe when the second alarm fires
static void handler(int sig, siginfo_t *info, void *context) {
    (void)sig, (void)info, (void)context;
    fired++;
    if (feed && fired == 2) CHECK(write(pipe_fds[1], "x", 1) == 1);
}
static void arm(int flags, int with_feed) {
    on_signal(SIGALRM, handler, flags);
    fired = 0;
    feed = with_feed;
    struct itimerval timer = {.it_value = {0, 10000}, .it_interval = {0, 10000}};
    SYS(setitimer(ITIMER_REAL, &timer, 0));
}
static void disarm(void) {
    struct itimerval timer = {0};
    SYS(setitimer(ITIMER_REAL, &timer, 0));
}
static void report(const char *what, long result) {
    int error = errno;
    disarm();
    printf("%s: %s, %s\n", what, result >= 0 ? "done" : strerror(error), fired >= 2 ? "restarted" : "first signal");
}
int main(void) {
    SYS(pipe(pipe_fds));
    char c;
    arm(SA_RESTART, 1);
    report("read, restart", read(pipe_fds[0], &c, 1));
    arm(0, 0);
    report("read, no restart", read(pipe_fds[0], &c, 1));
    struct pollfd pfd = {.fd = pipe_fds[0], .events = POLLIN};
    arm(SA_RESTART, 1);
    report("poll", poll(&pfd, 1, 5000));
    arm(0, 0);
    fd_set set;
    FD_ZERO(&set);
    FD_SET(pipe_fds[0], &set);
    struct timeval tv = {5, 0};
    report("select", select(pipe_fds[0] + 1, &set, 0, 0, &tv));
    CHECK(tv.tv_sec == 4); // Linux leaves the time that is left
    arm(SA_RESTART, 0);
    int ep = SYS(epoll_create1(0));
    struct epoll_event ev = {.events = EPOLLIN};
    SYS(epoll_ctl(ep, EPOLL_CTL_ADD, pipe_fds[0], &ev));
    report("epoll_wait", epoll_wait(ep, &ev, 1, 5000));
    arm(SA_RESTART, 0);
    struct timespec ts = {5, 0}, left = {0};
    report("nanosleep", nanosleep(&ts, &left));
    CHECK(left.tv_sec == 4);
    arm(SA_RESTART, 0);
    report("clock_nanosleep", clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, &left) == 0 ? 0 : (errno = EINTR, -1));
    arm(SA_RESTART, 0);
    report("pause", pause());
    arm(SA_RESTART, 0);
    int word = 0;
    struct timespec timeout = {5, 0};
    report("futex with time", syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &timeout, 0, 0));
    pid_t pid = SYS(fork());
    if (pid == 0) {
        sleep_ms(60);
        _exit(0);
    }
    arm(SA_RESTART, 0);
    report("waitpid, restart", waitpid(pid, 0, 0));
    pid = SYS(fork());
    if (pid == 0) {
        sleep_ms(60);
        _exit(0);
    }
    arm(0, 0);
    report("waitpid, no restart", waitpid(pid, 0, 0));
    CHECK(waitpid(pid, 0, 0) == pid);
    // A write larger than the pipe is cut short, not failed.
    static char big[1 << 20];
    arm(0, 0);
    ssize_t n = write(pipe_fds[1], big, sizeof big);
    disarm();
    printf("write: %s\n", n > 0 && n < (ssize_t)sizeof big ? "cut short" : "?");
    return 0;
}
