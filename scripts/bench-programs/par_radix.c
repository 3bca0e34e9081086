// Radix sort of size numbers: histograms, prefix sums, and a permutation that writes all over the other array.
#include "par.h"
enum { BITS = 8, BUCKETS = 1 << BITS };
static uint32_t *from, *to;
static long counts[MAX_THREADS][BUCKETS];
static void *body(void *arg) {
    int me = (int)(long)arg;
    long first, last;
    part(size, me, &first, &last);
    for (int round = 0; round < 10; round++) {
        for (long i = first; i < last; i++) {
            uint64_t state = (uint64_t)i * 0x9e3779b97f4a7c15 + (uint64_t)round;
            from[i] = (uint32_t)(next_random(&state) >> 16);
        }
        wait_for_all();
        uint32_t *source = from, *target = to;
        for (int shift = 0; shift < 32; shift += BITS) {
            long *mine = counts[me], offset[BUCKETS], sum = 0;
            memset(mine, 0, sizeof counts[me]);
            for (long i = first; i < last; i++) mine[source[i] >> shift & (BUCKETS - 1)]++;
            wait_for_all();
            for (int b = 0; b < BUCKETS; b++)
                for (int t = 0; t < threads; t++) {
                    if (t == me) offset[b] = sum;
                    sum += counts[t][b];
                }
            for (long i = first; i < last; i++) target[offset[source[i] >> shift & (BUCKETS - 1)]++] = source[i];
            wait_for_all();
            uint32_t *swap = source;
            source = target;
            target = swap;
        }
    }
    return 0;
}
int main(int argc, char **argv) {
    arguments(argc, argv, 5000000);
    from = malloc(sizeof *from * (size_t)size);
    to = malloc(sizeof *to * (size_t)size);
    run_all(body);
    uint64_t sum = 0;
    for (long i = 0; i < size; i++) {
        if (i && from[i] < from[i - 1]) return 1;
        sum = sum * 31 + from[i];
    }
    printf("%016lx\n", sum);
    return 0;
}
