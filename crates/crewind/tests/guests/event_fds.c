// eventfd, timerfd, memfd with seals, pidfd, inotify.
#include "check.h"
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/timerfd.h>
int main(void) {
    int e = SYS(eventfd(5, EFD_NONBLOCK | EFD_SEMAPHORE));
    uint64_t v;
    for (int i = 0; i < 5; i++) CHECK(read(e, &v, 8) == 8 && v == 1);
    FAILS(read(e, &v, 8), EAGAIN);
    e = SYS(eventfd(0, 0));
    pid_t pid = SYS(fork());
    if (pid == 0) {
        for (v = 1; v <= 10; v++) CHECK(write(e, &v, 8) == 8);
        _exit(0);
    }
    print_end("adder", pid);
    CHECK(read(e, &v, 8) == 8 && v == 55);
    int t = SYS(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC));
    struct itimerspec spec = {{0, 1000000}, {0, 1000000}}, left;
    SYS(timerfd_settime(t, 0, &spec, 0));
    uint64_t total = 0;
    while (total < 20) {
        CHECK(read(t, &v, 8) == 8 && v >= 1);
        total += v;
    }
    SYS(timerfd_gettime(t, &left));
    CHECK(left.it_interval.tv_nsec == 1000000 && left.it_value.tv_nsec <= 1000000);
    int m = SYS(memfd_create("sealed", MFD_ALLOW_SEALING));
    CHECK(write(m, "text", 4) == 4);
    SYS(fcntl(m, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK));
    FAILS(write(m, "x", 1), EPERM);
    CHECK(fcntl(m, F_GET_SEALS) == (F_SEAL_WRITE | F_SEAL_SHRINK));
    SYS(mkdir("watched", 0700));
    int in = SYS(inotify_init1(IN_NONBLOCK));
    int wd = SYS(inotify_add_watch(in, "watched", IN_CREATE | IN_DELETE | IN_MOVE | IN_CLOSE_WRITE));
    int f = SYS(open("watched/a", O_CREAT | O_WRONLY, 0600));
    CHECK(write(f, "1", 1) == 1);
    SYS(close(f));
    SYS(rename("watched/a", "watched/b"));
    SYS(unlink("watched/b"));
    SYS(inotify_rm_watch(in, wd));
    char buffer[4096] __attribute__((aligned(8)));
    ssize_t n = SYS(read(in, buffer, sizeof buffer));
    for (char *at = buffer; at < buffer + n;) {
        struct inotify_event *event = (struct inotify_event *)at;
        printf("inotify %x %s\n", event->mask, event->len ? event->name : "");
        at += sizeof *event + event->len;
    }
    puts("event descriptors work");
    return 0;
}
