// Counters that processes share: exact ones by atomic instructions of all sizes, one that loses counts.
// varies
#include "share.h"
static struct {
    _Atomic uint64_t exact, by_compare;
    _Atomic uint8_t small;
    _Atomic uint16_t middle;
    volatile uint64_t racy;
    struct gate gate;
} *s;
static uint64_t work(int number) {
    uint64_t digest = number;
    par_gate(&s->gate, par_threads);
    for (int i = 0; i < par_rounds; i++) {
        digest = mix(digest, atomic_fetch_add(&s->exact, 1));
        digest = mix(digest, s->racy);
        s->racy++;
        uint64_t seen = atomic_load_explicit(&s->by_compare, memory_order_relaxed);
        while (!atomic_compare_exchange_weak(&s->by_compare, &seen, seen + 3)) digest = mix(digest, seen);
        digest = mix(digest, atomic_fetch_xor(&s->small, i));
        atomic_fetch_add(&s->middle, 1);
        if (i % 16 == number) sched_yield();
    }
    return digest;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 3, 300);
    s = share(sizeof *s);
    in_processes(par_threads, work);
    uint64_t all = (uint64_t)par_threads * par_rounds;
    CHECK(s->exact == all && s->by_compare == 3 * all && s->middle == (uint16_t)all);
    CHECK(s->racy <= all);
    printf("racy %lu small %d\n", s->racy, s->small);
    return 0;
}
