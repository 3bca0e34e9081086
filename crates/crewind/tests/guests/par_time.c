// Threads that ask for the time, and for time stamps, all the time: into memory of their own, into memory that all write, over the
// border of a page, where nothing may be written, and in a signal handler. Nothing of that has a place among what other threads do.
// varies
#include "par.h"
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <x86intrin.h>
static struct timespec shared_time[4];
static char *pages;
static _Atomic long ticks;
static _Atomic int done;
static void handler(int sig) {
    struct timespec t;
    CHECK(sig == SIGUSR1 && clock_gettime(CLOCK_MONOTONIC, &t) == 0);
    ticks += t.tv_nsec & 1;
}
static uint64_t body(int me) {
    uint64_t state = (uint64_t)me * 77 + 1, seen = (uint64_t)me, before = 0;
    for (int i = 0; i < par_rounds; i++) {
        uint64_t r = next_random(&state);
        struct timespec t = {0, 0}, *to = &t;
        struct timeval v = {0, 0};
        time_t seconds = 0;
        long result = 0;
        switch (r % 16) {
        case 0: to = &shared_time[(r >> 8) % 4]; break;
        case 1: to = (struct timespec *)(void *)(pages + PAGE - 8); break;
        case 2: // Not writable, and half of it.
            result = syscall(SYS_clock_gettime, CLOCK_MONOTONIC, pages + 3 * PAGE - 8 * (r >> 8 & 1));
            CHECK(result == -1 && errno == EFAULT);
            break;
        case 3: CHECK(syscall(SYS_clock_gettime, 12345, &t) == -1 && errno == EINVAL); break;
        case 4: CHECK(syscall(SYS_gettimeofday, &v, NULL) == 0 && v.tv_sec > 1000); break;
        case 5: {
            struct timezone zone;
            CHECK(syscall(SYS_gettimeofday, &v, &zone) == 0);
            break;
        }
        case 6: result = syscall(SYS_time, NULL); break;
        case 7: result = syscall(SYS_time, &seconds); CHECK(result == seconds); break;
        case 8: CHECK(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) == 0); break;
        case 9: CHECK(clock_gettime(CLOCK_REALTIME_COARSE, &t) == 0); break;
        case 10: {
            unsigned aux;
            result = (long)__rdtscp(&aux);
            break;
        }
        case 11: result = (long)__rdtsc(); break;
        case 12:
            if (me == 0 && i % 8 == 0) pthread_kill(pthread_self(), SIGUSR1);
            break;
        }
        CHECK(clock_gettime(CLOCK_MONOTONIC, to) == 0);
        if (to == &t) {
            uint64_t now = (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
            CHECK(now >= before);
            before = now;
        }
        seen = mix(seen, (uint64_t)(result + to->tv_nsec + to->tv_sec + v.tv_usec + v.tv_sec));
    }
    done++;
    return seen;
}
static void *sender(void *threads) {
    (void)threads;
    while (!done) {
        kill(getpid(), SIGUSR1);
        usleep(200);
    }
    return NULL;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 3, 4000);
    signal(SIGUSR1, handler);
    pages = SYS((char *)mmap(0, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    SYS(mprotect(pages + 3 * PAGE, PAGE, PROT_READ));
    pthread_t t;
    CHECK(pthread_create(&t, NULL, sender, NULL) == 0);
    par_run("seen", body);
    CHECK(pthread_join(t, NULL) == 0);
    printf("shared %ld, ticks %ld\n", shared_time[0].tv_nsec, (long)ticks);
    return 0;
}
