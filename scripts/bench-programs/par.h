// Shared by the parallel benchmarks: argument 1 is the number of threads, argument 2 the size. Each prints a result that
// does not depend on the number of threads, unless it says so.
#ifndef PAR_H
#define PAR_H
#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
enum { MAX_THREADS = 64 };
static int threads;
static long size;
static pthread_barrier_t barrier;

static inline void wait_for_all(void) { pthread_barrier_wait(&barrier); }

// The part of `n` items that belongs to a thread.
static inline void part(long n, int me, long *from, long *to) {
    *from = n * me / threads;
    *to = n * (me + 1) / threads;
}

static inline void arguments(int argc, char **argv, long default_size) {
    threads = argc > 1 ? atoi(argv[1]) : 2;
    size = argc > 2 ? atol(argv[2]) : default_size;
    if (threads < 1 || threads > MAX_THREADS || size < 1) {
        fprintf(stderr, "usage: %s THREADS [SIZE]\n", argv[0]);
        exit(2);
    }
    pthread_barrier_init(&barrier, 0, (unsigned)threads);
}

static inline void run_all(void *(*body)(void *)) {
    pthread_t ids[MAX_THREADS];
    for (long t = 1; t < threads; t++)
        if (pthread_create(&ids[t], 0, body, (void *)t)) exit(1);
    body((void *)0);
    for (int t = 1; t < threads; t++) pthread_join(ids[t], 0);
}

static inline uint64_t next_random(uint64_t *state) {
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}
#endif
