// Cancellation, deferred and asynchronous, with clean-up handlers; pthread_kill; exit while others run.
#include "check.h"
#include <pthread.h>
static int cleaned;
static volatile int started, signalled, asked;
static void clean(void *arg) { cleaned += (int)(intptr_t)arg; }
static void *sleeper(void *arg) {
    pthread_cleanup_push(clean, arg);
    started = 1;
    for (;;) sleep(100);
    pthread_cleanup_pop(0);
    return 0;
}
static void *reader(void *arg) {
    int *fd = arg;
    char c;
    pthread_cleanup_push(clean, (void *)10);
    started = 1;
    CHECK(read(*fd, &c, 1) == 1);
    pthread_cleanup_pop(0);
    return 0;
}
static void *spinner(void *arg) {
    (void)arg;
    pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, 0);
    pthread_cleanup_push(clean, (void *)100);
    started = 1;
    for (;;) {
    }
    pthread_cleanup_pop(0);
    return 0;
}
static void *late(void *arg) {
    (void)arg;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, 0);
    started = 1;
    while (!asked) sleep_ms(1);
    pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, 0);
    pthread_testcancel();
    return 0;
}
static void handler(int sig) {
    (void)sig;
    signalled = (int)syscall(SYS_gettid);
}
static void *forever(void *arg) {
    (void)arg;
    started = 1;
    for (;;) {
    }
    return 0;
}
static void cancel(void *(*body)(void *), void *arg, const char *what) {
    pthread_t t;
    started = asked = 0;
    CHECK(pthread_create(&t, 0, body, arg) == 0);
    while (!started) sched_yield();
    sleep_ms(5);
    CHECK(pthread_cancel(t) == 0);
    asked = 1;
    void *result;
    CHECK(pthread_join(t, &result) == 0);
    printf("%s: %s, cleaned %d\n", what, result == PTHREAD_CANCELED ? "cancelled" : "ended", cleaned);
}
static void *wait_signal(void *arg) {
    *(int *)arg = (int)syscall(SYS_gettid);
    started = 1;
    while (!signalled) sleep_ms(1);
    return 0;
}
int main(void) {
    int fds[2];
    SYS(pipe(fds));
    cancel(sleeper, (void *)1, "in sleep");
    cancel(reader, fds, "in read");
    cancel(spinner, 0, "spinning");
    cancel(late, 0, "when enabled again");
    signal(SIGUSR1, handler);
    pthread_t t;
    int tid;
    started = asked = 0;
    CHECK(pthread_create(&t, 0, wait_signal, &tid) == 0);
    while (!started) sched_yield();
    CHECK(pthread_kill(t, SIGUSR1) == 0);
    CHECK(pthread_join(t, 0) == 0);
    printf("the right thread was signalled: %d\n", signalled == tid);
    started = asked = 0;
    CHECK(pthread_create(&t, 0, forever, 0) == 0);
    while (!started) sched_yield();
    puts("exit while another thread runs");
    return 0;
}
