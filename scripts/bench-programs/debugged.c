// Two threads that compute for some seconds; `mark` is written once, half-way.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

volatile long mark, never;
static double length;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned long total;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void *work(void *first) {
    double from = now(), passed;
    unsigned table[1024] = {0}, x = 1;
    do {
        for (int i = 0; i < 200000; i++) {
            x = x * 1664525 + 1013904223;
            table[x >> 22] += x;
        }
        pthread_mutex_lock(&lock);
        total += table[x >> 22];
        pthread_mutex_unlock(&lock);
        passed = now() - from;
        if (first && !mark && passed > length / 2) mark = 1;
    } while (passed < length);
    return NULL;
}

int main(int argc, char **argv) {
    length = argc > 1 ? atof(argv[1]) : 1;
    pthread_t other;
    pthread_create(&other, NULL, work, NULL);
    work(&other);
    pthread_join(other, NULL);
    printf("%d\n", total != 0);
    return 0;
}
