// pthread_cancel of several threads at once, deferred and asynchronous, while they compute, wait and hold robust mutexes; clean-up
// handlers change racing memory.
// varies
#include "par.h"
static volatile long racy;
static pthread_mutex_t mutex;
static _Atomic int cleaned;
static void clean(void *arg) {
    racy += (long)(intptr_t)arg;
    cleaned++;
}
static _Atomic int started;
static void *victim(void *arg) {
    int kind = (int)(intptr_t)arg % 3;
    pthread_cleanup_push(clean, arg);
    if (kind == 0) pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, 0);
    started++;
    for (;;) {
        if (kind == 0) {
            racy++;
        } else if (kind == 1) {
            struct timespec ts = {0, 100000};
            nanosleep(&ts, 0);
        } else {
            racy++;
            pthread_testcancel();
        }
    }
    pthread_cleanup_pop(0);
    return 0;
}
static void *dies_with_lock(void *arg) {
    int result = pthread_mutex_lock(&mutex);
    if (result == EOWNERDEAD) CHECK(pthread_mutex_consistent(&mutex) == 0);
    racy += (long)(intptr_t)arg;
    // The lock is the next one's to repair.
    return (void *)(intptr_t)(result == EOWNERDEAD);
}
static uint64_t body(int me) {
    uint64_t seen = (uint64_t)me;
    for (int i = 0; i < par_rounds; i++) {
        pthread_t a, b;
        CHECK(pthread_create(&a, 0, victim, (void *)(intptr_t)(i + me)) == 0);
        CHECK(pthread_create(&b, 0, dies_with_lock, (void *)(intptr_t)i) == 0);
        unsigned spins = 0;
        while (!started) par_relax(&spins);
        seen = mix(seen, (uint64_t)racy);
        CHECK(pthread_cancel(a) == 0);
        void *result;
        CHECK(pthread_join(a, &result) == 0);
        CHECK(result == PTHREAD_CANCELED);
        CHECK(pthread_join(b, &result) == 0);
        seen = mix(seen, (uint64_t)result);
        int locked = pthread_mutex_lock(&mutex);
        CHECK(locked == 0 || locked == EOWNERDEAD);
        seen = mix(seen, (uint64_t)locked);
        if (locked == EOWNERDEAD) CHECK(pthread_mutex_consistent(&mutex) == 0);
        CHECK(pthread_mutex_unlock(&mutex) == 0);
    }
    return seen;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 2, 30);
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&mutex, &attr);
    par_run("seen", body);
    // A thread cancelled before it installed its handler has none to run.
    CHECK(cleaned <= par_rounds * par_threads);
    printf("cleaned %d, counter %ld\n", cleaned, racy);
    return 0;
}
