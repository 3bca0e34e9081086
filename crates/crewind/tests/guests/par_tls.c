// Thread-local memory and stacks are memory like any other: threads publish addresses of theirs, and others read and write there.
// varies
#include "par.h"
static __thread volatile long local[600];
static __thread _Atomic long exact;
static volatile long *volatile published[MAX_THREADS], *volatile stacks[MAX_THREADS];
static _Atomic long *volatile exacts[MAX_THREADS];
static struct gate gate;
static uint64_t body(int me) {
    volatile long frame[700];
    uint64_t seen = (uint64_t)me, state = (uint64_t)me + 31;
    for (int i = 0; i < 700; i++) frame[i] = me;
    published[me] = local;
    stacks[me] = frame;
    exacts[me] = &exact;
    par_gate(&gate, (unsigned)par_threads);
    for (int i = 0; i < par_rounds; i++) {
        uint64_t r = next_random(&state);
        int other = (int)(r % (uint64_t)par_threads);
        volatile long *word = r & 256 ? &published[other][r >> 16 & 511] : &stacks[other][r >> 16 & 511];
        seen = mix(seen, (uint64_t)*word);
        *word = (long)seen;
        local[r >> 40 & 511]++;
        frame[r >> 50 & 511]++;
        (*exacts[other])++;
    }
    // The memory ends with the thread.
    par_gate(&gate, (unsigned)par_threads);
    return mix(mix(seen, (uint64_t)exact), hash_bytes((void *)frame, sizeof frame));
}
int main(int argc, char **argv) {
    par_args(argc, argv, 2, 30000);
    par_run("seen", body);
    return 0;
}
