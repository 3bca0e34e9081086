// Threads that share little: each sorts numbers of its own, and now and then reads what its neighbour has got. The result is
// exact.
#include "par.h"
enum { NUMBERS = 32768 };
static uint32_t *numbers[MAX_THREADS];
static pthread_barrier_t barrier;
static int by_value(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}
static uint64_t body(int me) {
    uint64_t seen = (uint64_t)me;
    numbers[me] = aligned_alloc(PAGE, NUMBERS * sizeof(uint32_t));
    CHECK(numbers[me]);
    for (int i = 0; i < par_rounds; i++) {
        uint32_t x = (uint32_t)(me + 1) * 77 + (uint32_t)i;
        for (int k = 0; k < NUMBERS; k++) numbers[me][k] = x = x * 1664525 + 1013904223;
        qsort(numbers[me], NUMBERS, sizeof(uint32_t), by_value);
        pthread_barrier_wait(&barrier);
        seen = mix(seen, numbers[(me + 1) % par_threads][NUMBERS / 2]);
        pthread_barrier_wait(&barrier);
    }
    return seen;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 2, 8);
    pthread_barrier_init(&barrier, 0, (unsigned)par_threads);
    par_run("medians", body);
    return 0;
}
