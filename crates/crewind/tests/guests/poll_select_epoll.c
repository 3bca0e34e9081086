// poll, select and epoll: readiness, hang-ups, time-outs, edge triggering, one-shot, nested epoll.
#include "check.h"
#include <sys/epoll.h>
#include <sys/select.h>
int main(void) {
    int p[2], q[2];
    SYS(pipe2(p, O_NONBLOCK));
    SYS(pipe2(q, O_NONBLOCK));
    struct pollfd pfd[3] = {{p[0], POLLIN, 0}, {q[1], POLLOUT, 0}, {999, POLLIN, 0}};
    CHECK(poll(pfd, 3, 0) == 2 && pfd[0].revents == 0 && pfd[1].revents == POLLOUT && pfd[2].revents == POLLNVAL);
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    CHECK(poll(pfd, 1, 20) == 0);
    clock_gettime(CLOCK_MONOTONIC, &b);
    CHECK((b.tv_sec - a.tv_sec) * 1000000000L + b.tv_nsec - a.tv_nsec >= 20000000);
    CHECK(write(p[1], "x", 1) == 1);
    fd_set r, w;
    FD_ZERO(&r);
    FD_ZERO(&w);
    FD_SET(p[0], &r);
    FD_SET(q[0], &r);
    FD_SET(q[1], &w);
    struct timeval tv = {1, 0};
    CHECK(select(200, &r, &w, 0, &tv) == 2 && FD_ISSET(p[0], &r) && !FD_ISSET(q[0], &r) && FD_ISSET(q[1], &w));
    int ep = SYS(epoll_create1(EPOLL_CLOEXEC));
    struct epoll_event ev = {EPOLLIN | EPOLLET, {.u64 = 0x1111222233334444}}, out[4];
    SYS(epoll_ctl(ep, EPOLL_CTL_ADD, p[0], &ev));
    FAILS(epoll_ctl(ep, EPOLL_CTL_ADD, p[0], &ev), EEXIST);
    ev.events = EPOLLOUT | EPOLLONESHOT;
    ev.data.u32 = 7;
    SYS(epoll_ctl(ep, EPOLL_CTL_ADD, q[1], &ev));
    int n = epoll_wait(ep, out, 4, 100);
    CHECK(n == 2);
    for (int i = 0; i < n; i++) CHECK(out[i].data.u64 == 0x1111222233334444 || out[i].data.u32 == 7);
    CHECK(epoll_wait(ep, out, 4, 0) == 0); // edge seen, one shot spent
    CHECK(write(p[1], "y", 1) == 1);
    CHECK(epoll_wait(ep, out, 4, 0) == 1 && out[0].events == EPOLLIN);
    ev.events = EPOLLOUT;
    SYS(epoll_ctl(ep, EPOLL_CTL_MOD, q[1], &ev));
    CHECK(epoll_pwait(ep, out, 4, 0, 0) == 1);
    SYS(epoll_ctl(ep, EPOLL_CTL_DEL, q[1], 0));
    int outer = SYS(epoll_create1(0));
    ev = (struct epoll_event){EPOLLIN, {.fd = ep}};
    SYS(epoll_ctl(outer, EPOLL_CTL_ADD, ep, &ev));
    CHECK(write(p[1], "z", 1) == 1);
    CHECK(epoll_wait(outer, out, 4, 0) == 1 && out[0].data.fd == ep);
    SYS(close(p[1]));
    CHECK(poll(pfd, 1, 0) == 1 && pfd[0].revents == (POLLIN | POLLHUP));
    // Another process makes it ready.
    SYS(fcntl(q[0], F_SETFL, 0));
    pid_t pid = SYS(fork());
    if (pid == 0) {
        sleep_ms(20);
        CHECK(write(q[1], "late", 4) == 4);
        _exit(0);
    }
    struct pollfd late = {q[0], POLLIN, 0};
    CHECK(poll(&late, 1, -1) == 1);
    print_end("writer", pid);
    ev = (struct epoll_event){EPOLLIN, {.fd = q[0]}};
    SYS(epoll_ctl(ep, EPOLL_CTL_ADD, q[0], &ev));
    struct timespec zero = {0, 0};
    CHECK(syscall(SYS_epoll_pwait2, ep, out, 4, &zero, 0, 0) == 2); // the hang-up of the first pipe as well
    puts("readiness works");
    return 0;
}
