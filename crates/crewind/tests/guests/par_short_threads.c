// Thousands of short-lived threads, made by several threads at once; they use thread-local memory, the heap and a racy counter.
// Some are detached: their end is told by a counter.
// varies
#include "par.h"
static volatile long racy;
static _Atomic long ended;
static __thread char local[3000];
static void *brief(void *arg) {
    long n = (long)(intptr_t)arg;
    memset(local, (int)n, sizeof local);
    long *block = malloc(sizeof *block + (size_t)n % 700);
    *block = racy;
    racy = *block + 1;
    uint64_t seen = mix((uint64_t)local[n % 3000], (uint64_t)*block);
    free(block);
    ended++;
    return (void *)seen;
}
static uint64_t body(int me) {
    uint64_t seen = (uint64_t)me;
    pthread_attr_t attr, detached;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 64 << 10);
    detached = attr;
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    for (int i = 0; i < par_rounds; i++) {
        pthread_t a, b, c;
        CHECK(pthread_create(&a, &attr, brief, (void *)(intptr_t)(i + me)) == 0);
        CHECK(pthread_create(&b, &detached, brief, (void *)(intptr_t)(i * 2)) == 0);
        CHECK(pthread_create(&c, &attr, brief, (void *)(intptr_t)(i * 3)) == 0);
        void *result;
        CHECK(pthread_join(c, &result) == 0);
        seen = mix(seen, (uint64_t)result);
        CHECK(pthread_join(a, &result) == 0);
        seen = mix(seen, (uint64_t)result);
    }
    return seen;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 2, 0);
    if (!par_rounds) par_rounds = 400 / par_threads;
    par_run("seen", body);
    while (ended < 3L * par_rounds * par_threads) sched_yield();
    printf("%ld ended, counter %ld\n", ended, racy);
    return 0;
}
