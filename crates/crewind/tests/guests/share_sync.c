// Mutex, condition variable, barrier, semaphore and spin lock that processes share.
// varies
#include "share.h"
#include <semaphore.h>
static struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    pthread_barrier_t barrier;
    pthread_spinlock_t spin;
    sem_t sem;
    int turn;
    long under_mutex, under_spin;
    char log[4096];
    int logged;
} *s;
static uint64_t work(int number) {
    uint64_t digest = number;
    for (int i = 0; i < par_rounds; i++) {
        CHECK(pthread_mutex_lock(&s->mutex) == 0);
        digest = mix(digest, s->under_mutex++);
        s->log[s->logged++ % sizeof s->log] = 'a' + number;
        pthread_mutex_unlock(&s->mutex);
        pthread_spin_lock(&s->spin);
        digest = mix(digest, s->under_spin++);
        pthread_spin_unlock(&s->spin);
        if (i % 8 == 0) {
            SYS(sem_wait(&s->sem));
            digest = mix(digest, s->logged);
            SYS(sem_post(&s->sem));
        }
        if (i % 16 == 0) {
            int last = pthread_barrier_wait(&s->barrier);
            CHECK(last == 0 || last == PTHREAD_BARRIER_SERIAL_THREAD);
            digest = mix(digest, last);
        }
    }
    // Each once, in turn.
    pthread_mutex_lock(&s->mutex);
    while (s->turn != number) pthread_cond_wait(&s->changed, &s->mutex);
    s->turn++;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
    return digest;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 3, 100);
    s = share(sizeof *s);
    pthread_mutexattr_t m;
    pthread_mutexattr_init(&m);
    CHECK(pthread_mutexattr_setpshared(&m, PTHREAD_PROCESS_SHARED) == 0);
    pthread_mutex_init(&s->mutex, &m);
    pthread_condattr_t c;
    pthread_condattr_init(&c);
    CHECK(pthread_condattr_setpshared(&c, PTHREAD_PROCESS_SHARED) == 0);
    pthread_cond_init(&s->changed, &c);
    pthread_barrierattr_t b;
    pthread_barrierattr_init(&b);
    CHECK(pthread_barrierattr_setpshared(&b, PTHREAD_PROCESS_SHARED) == 0);
    pthread_barrier_init(&s->barrier, &b, par_threads);
    pthread_spin_init(&s->spin, PTHREAD_PROCESS_SHARED);
    SYS(sem_init(&s->sem, 1, 1));
    in_processes(par_threads, work);
    long all = (long)par_threads * par_rounds;
    CHECK(s->under_mutex == all && s->under_spin == all && s->turn == par_threads);
    // Straight from the shared memory.
    SYS(write(1, s->log, all < 4096 ? all : 4096));
    puts("");
    return 0;
}
