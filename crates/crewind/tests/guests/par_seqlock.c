// A sequence lock: the first thread writes, the others read, and read again when they see a write in progress. What a reader
// accepts must be of one write. The data spans two pages.
// varies
#include "par.h"
enum { WORDS = 12 };
static _Atomic unsigned sequence;
static char memory[3 * PAGE] __attribute__((aligned(4096)));
static volatile long *words = (volatile long *)(memory + PAGE - WORDS / 2 * 8);
static _Atomic int done;
static uint64_t body(int me) {
    uint64_t seen = 5;
    unsigned spins = 0;
    if (me == 0) {
        for (int i = 1; i <= par_rounds; i++) {
            atomic_store_explicit(&sequence, 2 * (unsigned)i - 1, memory_order_relaxed);
            atomic_thread_fence(memory_order_release);
            for (int k = 0; k < WORDS; k++) words[k] = i * (k + 1L);
            atomic_store_explicit(&sequence, 2 * (unsigned)i, memory_order_release);
            if (i % 256 == 0) sched_yield();
        }
        done = 1;
        return seen;
    }
    long copy[WORDS], retries = 0, accepted = 0;
    do {
        unsigned before, after;
        for (;;) {
            before = atomic_load_explicit(&sequence, memory_order_acquire);
            for (int k = 0; k < WORDS; k++) copy[k] = words[k];
            atomic_thread_fence(memory_order_acquire);
            after = atomic_load_explicit(&sequence, memory_order_relaxed);
            if (before == after && before % 2 == 0) break;
            retries++;
            par_relax(&spins);
        }
        for (int k = 0; k < WORDS; k++) CHECK(copy[k] == (long)(before / 2) * (k + 1));
        seen = mix(seen, before);
        accepted++;
    } while (!done);
    return mix(mix(seen, (uint64_t)retries), (uint64_t)accepted);
}
int main(int argc, char **argv) {
    par_args(argc, argv, 2, 5000);
    par_run("reads", body);
    printf("written %u times\n", sequence / 2);
    CHECK(sequence == 2 * (unsigned)par_rounds);
    return 0;
}
