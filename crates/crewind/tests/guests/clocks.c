// Time goes forward, sleeps last as long as asked, timers fire as often as they say: also while being recorded.
#include "check.h"
static uint64_t now(clockid_t id) {
    struct timespec t;
    SYS(clock_gettime(id, &t));
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}
static volatile int fired;
static void handler(int sig, siginfo_t *info, void *context) {
    (void)sig, (void)info, (void)context;
    fired++;
}
int main(void) {
    uint64_t last = now(CLOCK_MONOTONIC);
    for (int i = 0; i < 10000; i++) {
        uint64_t next = now(CLOCK_MONOTONIC);
        CHECK(next >= last);
        last = next;
    }
    uint64_t start = now(CLOCK_MONOTONIC);
    sleep_ms(30);
    CHECK(now(CLOCK_MONOTONIC) - start >= 30000000);
    struct timespec until;
    SYS(clock_gettime(CLOCK_MONOTONIC, &until));
    until.tv_nsec += 20000000;
    if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
    CHECK(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, 0) == 0);
    CHECK(now(CLOCK_MONOTONIC) >= (uint64_t)until.tv_sec * 1000000000 + (uint64_t)until.tv_nsec);
    struct timeval tv;
    time_t t;
    SYS(gettimeofday(&tv, 0));
    SYS(time(&t));
    CHECK(t - tv.tv_sec <= 1 && t > 1700000000);
    struct timespec resolution;
    SYS(clock_getres(CLOCK_MONOTONIC, &resolution));
    CHECK(resolution.tv_nsec == 1);
    uint64_t cpu = now(CLOCK_PROCESS_CPUTIME_ID);
    for (volatile int i = 0; i < 20000000; i++) {
    }
    CHECK(now(CLOCK_PROCESS_CPUTIME_ID) > cpu && clock() > 0);
    on_signal(SIGVTALRM, handler, SA_RESTART);
    on_signal(SIGPROF, handler, SA_RESTART);
    struct itimerval timer = {{0, 10000}, {0, 10000}};
    SYS(setitimer(ITIMER_VIRTUAL, &timer, 0));
    while (fired < 3) {
    }
    SYS(getitimer(ITIMER_VIRTUAL, &timer));
    CHECK(timer.it_interval.tv_usec > 0);
    timer = (struct itimerval){0};
    SYS(setitimer(ITIMER_VIRTUAL, &timer, 0));
    fired = 0;
    timer.it_value.tv_usec = 5000;
    SYS(setitimer(ITIMER_PROF, &timer, 0));
    while (!fired) {
    }
    char text[64];
    struct tm tm;
    gmtime_r(&(time_t){951782400}, &tm);
    strftime(text, sizeof text, "%F %T %j", &tm);
    puts(text);
    return 0;
}
