// Litmus test SB: each thread stores to its own cell and then loads its neighbour's, without and with a fence between.
// Both reading 0 is what a store buffer does; with the fence it must not happen.
// varies
#include "par.h"
enum { CHUNK = 64 };
static volatile int *cells;
static unsigned char *read_back;
static int fence;
static struct gate gate;
static uint64_t body(int me) {
    uint64_t seen = 1;
    int other = (me + 1) % par_threads;
    for (int i = 0; i < par_rounds; i++) {
        // Without this one thread would be through before the other began.
        if (i % CHUNK == 0) par_gate(&gate, (unsigned)par_threads);
        volatile int *mine = &cells[i * par_threads + me], *theirs = &cells[i * par_threads + other];
        int value;
        if (fence)
            __asm__ volatile("movl $1, %1\n mfence\n movl %2, %0" : "=&r"(value), "=m"(*mine) : "m"(*theirs) : "memory");
        else
            __asm__ volatile("movl $1, %1\n movl %2, %0" : "=&r"(value), "=m"(*mine) : "m"(*theirs) : "memory");
        read_back[i * par_threads + me] = (unsigned char)value;
        seen = mix(seen, (uint64_t)value);
    }
    return seen;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 2, 40000);
    size_t n = (size_t)par_rounds * (size_t)par_threads;
    for (fence = 0; fence < 2; fence++) {
        cells = calloc(n, sizeof *cells);
        read_back = calloc(n, 1);
        par_run(fence ? "fenced" : "plain", body);
        long counts[4] = {0};
        for (int i = 0; i < par_rounds; i++) {
            unsigned char *r = read_back + i * par_threads;
            for (int t = 0; t + 1 < par_threads; t++) counts[r[t] * 2 + r[t + 1]]++;
            // All zero would be a cycle.
            int all = 0;
            for (int t = 0; t < par_threads; t++) all |= r[t];
            if (fence && par_threads > 1) CHECK(all);
        }
        printf("00 %ld, 01 %ld, 10 %ld, 11 %ld\n", counts[0], counts[1], counts[2], counts[3]);
        free((void *)cells);
        free(read_back);
    }
    return 0;
}
