// Processes with several threads each that share memory, and mix it with memory that only the threads share.
// varies
#include "share.h"
static struct {
    _Atomic uint64_t ticket;
    volatile uint64_t racy[4];
    struct gate gate;
    pthread_mutex_t mutex;
    uint64_t under_mutex;
} *s;
static volatile uint64_t own_racy;
static uint64_t digests[MAX_THREADS];
static void *thread(void *arg) {
    uint64_t digest = (uintptr_t)arg;
    for (int i = 0; i < par_rounds; i++) {
        digest = mix(digest, atomic_fetch_add(&s->ticket, 1));
        own_racy += s->racy[i % 4];
        s->racy[(i + 1) % 4] = own_racy + i;
        digest = mix(digest, own_racy);
        pthread_mutex_lock(&s->mutex);
        digest = mix(digest, s->under_mutex++);
        pthread_mutex_unlock(&s->mutex);
        // From shared to private memory and back, in one instruction each.
        void *to = digests + 8, *from = (void *)s->racy;
        uint64_t count = 2;
        __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
        if (i % 32 == 0) sched_yield();
    }
    digests[(uintptr_t)arg] = digest;
    return 0;
}
static uint64_t work(int number) {
    pthread_t threads[4];
    par_gate(&s->gate, 2);
    for (uintptr_t i = 1; i < (uintptr_t)par_threads; i++) CHECK(pthread_create(&threads[i], 0, thread, (void *)i) == 0);
    thread((void *)0);
    for (int i = 1; i < par_threads; i++) pthread_join(threads[i], 0);
    uint64_t digest = mix(number, own_racy);
    for (int i = 0; i < par_threads; i++) digest = mix(digest, digests[i]);
    return digest;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 2, 100);
    if (par_threads > 4) par_threads = 4;
    s = share(sizeof *s);
    pthread_mutexattr_t m;
    pthread_mutexattr_init(&m);
    CHECK(pthread_mutexattr_setpshared(&m, PTHREAD_PROCESS_SHARED) == 0);
    pthread_mutex_init(&s->mutex, &m);
    in_processes(2, work);
    CHECK(s->ticket == 2 * (uint64_t)par_threads * par_rounds && s->under_mutex == s->ticket);
    return 0;
}
