// Condition variables: a bounded queue of plain memory between producers and consumers, with signal and broadcast and timed
// waits that may or may not time out; semaphores and reader-writer locks.
// varies
#include "par.h"
#include <semaphore.h>
enum { SLOTS = 4 };
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t not_empty = PTHREAD_COND_INITIALIZER, not_full = PTHREAD_COND_INITIALIZER;
static pthread_rwlock_t rw = PTHREAD_RWLOCK_INITIALIZER;
static sem_t credits;
static long slots[SLOTS], put, taken, sum_in, sum_out, shared_value;
static int producers_left;
static uint64_t produce(int me, uint64_t seen) {
    for (int i = 0; i < par_rounds; i++) {
        long value = me * 1000000L + i;
        CHECK(pthread_mutex_lock(&mutex) == 0);
        while (put - taken == SLOTS) pthread_cond_wait(&not_full, &mutex);
        slots[put++ % SLOTS] = value;
        sum_in += value;
        seen = mix(seen, (uint64_t)put);
        pthread_cond_signal(&not_empty);
        pthread_mutex_unlock(&mutex);
    }
    pthread_mutex_lock(&mutex);
    producers_left--;
    pthread_cond_broadcast(&not_empty);
    pthread_mutex_unlock(&mutex);
    return seen;
}
static uint64_t consume(uint64_t seen) {
    pthread_mutex_lock(&mutex);
    for (;;) {
        while (put == taken && producers_left) {
            struct timespec until;
            clock_gettime(CLOCK_REALTIME, &until);
            until.tv_nsec += 50000;
            if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
            seen = mix(seen, (uint64_t)pthread_cond_timedwait(&not_empty, &mutex, &until));
        }
        if (put == taken) break;
        long value = slots[taken++ % SLOTS];
        sum_out += value;
        seen = mix(seen, (uint64_t)value);
        pthread_cond_broadcast(&not_full);
    }
    pthread_mutex_unlock(&mutex);
    return seen;
}
static uint64_t body(int me) {
    uint64_t seen = (uint64_t)me;
    seen = me % 2 ? produce(me, seen) : consume(seen);
    for (int i = 0; i < par_rounds; i++) {
        if (i % 16 == me % 16) {
            CHECK(pthread_rwlock_wrlock(&rw) == 0);
            shared_value++;
        } else {
            CHECK(pthread_rwlock_rdlock(&rw) == 0);
            seen = mix(seen, (uint64_t)shared_value);
        }
        pthread_rwlock_unlock(&rw);
        CHECK(sem_wait(&credits) == 0);
        CHECK(sem_post(&credits) == 0);
    }
    return seen;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 3, 1500);
    if (par_threads < 2) par_threads = 2;
    producers_left = par_threads / 2;
    sem_init(&credits, 0, (unsigned)par_threads / 2);
    par_run("order", body);
    CHECK(sum_in == sum_out && put == (long)(par_threads / 2) * par_rounds);
    printf("%ld through, value %ld\n", taken, shared_value);
    return 0;
}
