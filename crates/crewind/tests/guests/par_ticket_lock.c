// Ticket locks, which only the thread next in line can take: waiting with pause, with nothing, and with sched_yield. With
// more threads than cores each hand-over waits for the scheduler, so rounds are few.
// varies
// timeout: 120
#include "par.h"
static struct {
    _Atomic unsigned next, serving;
    long counter;
} locks[3];
static uint64_t body(int me) {
    uint64_t seen = (uint64_t)me;
    for (int kind = 0; kind < 3; kind++) {
        int rounds = kind == 2 ? par_rounds : par_threads > 2 ? par_rounds / 50 : par_rounds / 2;
        for (int i = 0; i < rounds; i++) {
            unsigned mine = atomic_fetch_add(&locks[kind].next, 1);
            while (atomic_load_explicit(&locks[kind].serving, memory_order_acquire) != mine) {
                if (kind == 0) __builtin_ia32_pause();
                if (kind == 2) sched_yield();
            }
            seen = mix(seen, (uint64_t)locks[kind].counter++);
            atomic_store_explicit(&locks[kind].serving, mine + 1, memory_order_release);
        }
    }
    return seen;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 2, 500);
    par_run("order", body);
    for (int kind = 0; kind < 3; kind++)
        CHECK(locks[kind].counter == (long)locks[kind].next && locks[kind].next == locks[kind].serving);
    printf("%ld %ld %ld\n", locks[0].counter, locks[1].counter, locks[2].counter);
    return 0;
}
