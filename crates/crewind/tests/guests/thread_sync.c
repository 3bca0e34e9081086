// Mutexes of all kinds, condition variables, semaphores, barriers, reader-writer and spin locks, time-outs.
#include "check.h"
#include <pthread.h>
#include <semaphore.h>
enum { THREADS = 4, ROUNDS = 3000 };
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER, recursive, checking;
static pthread_cond_t not_empty = PTHREAD_COND_INITIALIZER, not_full = PTHREAD_COND_INITIALIZER;
static pthread_rwlock_t rw = PTHREAD_RWLOCK_INITIALIZER;
static pthread_barrier_t barrier;
static pthread_spinlock_t spin;
static sem_t semaphore;
static long counter, spun, written, queue[8], consumed;
static int head, tail, produced;
static void *count(void *arg) {
    (void)arg;
    for (int i = 0; i < ROUNDS; i++) {
        pthread_mutex_lock(&mutex);
        counter++;
        pthread_mutex_unlock(&mutex);
        pthread_spin_lock(&spin);
        spun++;
        pthread_spin_unlock(&spin);
        if (i % 10 == 0) {
            pthread_rwlock_wrlock(&rw);
            written++;
        } else {
            pthread_rwlock_rdlock(&rw);
        }
        pthread_rwlock_unlock(&rw);
    }
    for (int i = 0; i < 50; i++) {
        pthread_barrier_wait(&barrier);
        if (i % 10 == 0) CHECK(sem_post(&semaphore) == 0);
    }
    pthread_mutex_lock(&recursive);
    pthread_mutex_lock(&recursive);
    pthread_mutex_unlock(&recursive);
    pthread_mutex_unlock(&recursive);
    return 0;
}
static void *produce(void *arg) {
    (void)arg;
    for (;;) {
        pthread_mutex_lock(&mutex);
        if (produced == 2000) break;
        while (head - tail == 8) pthread_cond_wait(&not_full, &mutex);
        if (produced < 2000) {
            queue[head++ % 8] = ++produced;
            pthread_cond_signal(&not_empty);
        }
        pthread_mutex_unlock(&mutex);
    }
    pthread_cond_broadcast(&not_empty);
    pthread_mutex_unlock(&mutex);
    return 0;
}
static void *consume(void *arg) {
    (void)arg;
    long sum = 0;
    pthread_mutex_lock(&mutex);
    for (;;) {
        while (head == tail && produced < 2000) pthread_cond_wait(&not_empty, &mutex);
        if (head == tail) break;
        sum += queue[tail++ % 8];
        pthread_cond_broadcast(&not_full);
    }
    consumed += sum;
    pthread_mutex_unlock(&mutex);
    return 0;
}
int main(void) {
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&recursive, &attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ERRORCHECK);
    pthread_mutex_init(&checking, &attr);
    pthread_barrier_init(&barrier, 0, THREADS);
    pthread_spin_init(&spin, 0);
    sem_init(&semaphore, 0, 0);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], 0, count, 0) == 0);
    for (int i = 0; i < THREADS * 5; i++) CHECK(sem_wait(&semaphore) == 0);
    for (int i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], 0) == 0);
    printf("%ld %ld %ld\n", counter, spun, written);
    for (int i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], 0, i % 2 ? produce : consume, 0) == 0);
    for (int i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], 0) == 0);
    printf("consumed %ld\n", consumed);
    CHECK(pthread_mutex_lock(&checking) == 0 && pthread_mutex_lock(&checking) == EDEADLK);
    CHECK(pthread_mutex_trylock(&mutex) == 0 && pthread_mutex_trylock(&mutex) == EBUSY);
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 10000000;
    if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
    CHECK(pthread_mutex_timedlock(&checking, &until) == EDEADLK);
    CHECK(pthread_cond_timedwait(&not_empty, &mutex, &until) == ETIMEDOUT);
    CHECK(sem_timedwait(&semaphore, &until) == -1 && errno == ETIMEDOUT);
    puts("all locks work");
    return 0;
}
