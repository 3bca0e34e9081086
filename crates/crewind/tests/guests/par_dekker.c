// Dekker's mutual exclusion of pairs of threads: with fences, where it must hold, and without, where it may fail: the failures
// are counted.
// varies
#include "par.h"
static struct pair {
    volatile int wants[2], turn, inside;
    volatile long counter;
    _Atomic long violations;
} __attribute__((aligned(128))) pairs[MAX_THREADS / 2 + 1];
static int fence;
static uint64_t body(int me) {
    struct pair *pair = &pairs[me / 2];
    int mine = me % 2, other = 1 - mine;
    unsigned spins = 0;
    uint64_t seen = 4;
    for (int i = 0; i < par_rounds; i++) {
        pair->wants[mine] = 1;
        if (fence) __asm__ volatile("mfence" ::: "memory");
        while (pair->wants[other]) {
            if (pair->turn != mine) {
                pair->wants[mine] = 0;
                while (pair->turn != mine && pair->wants[other]) par_relax(&spins);
                pair->wants[mine] = 1;
                if (fence) __asm__ volatile("mfence" ::: "memory");
            } else {
                par_relax(&spins);
            }
        }
        if (pair->inside++) pair->violations++;
        long value = pair->counter;
        seen = mix(seen, (uint64_t)value);
        pair->counter = value + 1;
        pair->inside--;
        pair->turn = other;
        pair->wants[mine] = 0;
    }
    return seen;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 2, 100000);
    for (fence = 1; fence >= 0; fence--) {
        memset(pairs, 0, sizeof pairs);
        par_run(fence ? "fenced" : "plain", body);
        for (int p = 0; p < (par_threads + 1) / 2; p++) {
            long members = 2 * p + 1 < par_threads ? 2 : 1;
            printf("counter %ld, violations %ld\n", pairs[p].counter, pairs[p].violations);
            if (fence) CHECK(pairs[p].counter == members * par_rounds && pairs[p].violations == 0);
        }
    }
    return 0;
}
