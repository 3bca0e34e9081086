// Spin locks: test-and-set by xchg, test-and-test-and-set by cmpxchg, by bts; with pause and bare, each around a counter.
// varies
#include "par.h"
static volatile int locks[4];
static long counters[4];
static unsigned char bits;
static inline int try_lock(int kind) {
    switch (kind) {
    case 0: return __atomic_exchange_n(&locks[0], 1, __ATOMIC_ACQUIRE) == 0;
    case 1: {
        int free = 0;
        return locks[1] == 0 && __atomic_compare_exchange_n(&locks[1], &free, 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
    }
    case 2: return !(__atomic_fetch_or(&bits, 8, __ATOMIC_ACQUIRE) & 8);
    default: return !__atomic_test_and_set(&locks[3], __ATOMIC_ACQUIRE);
    }
}
static inline void unlock(int kind) {
    if (kind == 2)
        __atomic_fetch_and(&bits, (unsigned char)~8, __ATOMIC_RELEASE);
    else
        __atomic_store_n((char *)&locks[kind], 0, __ATOMIC_RELEASE);
}
static uint64_t body(int me) {
    uint64_t seen = (uint64_t)me;
    for (int kind = 0; kind < 4; kind++)
        for (int i = 0; i < par_rounds; i++) {
            while (!try_lock(kind))
                if (i % 2) __builtin_ia32_pause();
            seen = mix(seen, (uint64_t)counters[kind]++);
            unlock(kind);
        }
    return seen;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 2, 0);
    if (!par_rounds) par_rounds = par_threads > 2 ? 3000 : 30000;
    par_run("order", body);
    for (int kind = 0; kind < 4; kind++) CHECK(counters[kind] == (long)par_threads * par_rounds);
    puts("exact");
    return 0;
}
