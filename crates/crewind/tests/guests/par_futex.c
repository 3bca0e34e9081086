// Futexes without a library: a mutex and a wait queue on bare words that other threads change while they are waited for, with
// FUTEX_WAIT, WAIT_BITSET, WAKE, REQUEUE, CMP_REQUEUE and WAKE_OP, private and shared.
// varies
#include "par.h"
#include <linux/futex.h>
static _Atomic int lock, sequence, target, other_word, sleepers;
static long counter;
static long futex(_Atomic int *word, int op, int value, const void *timeout, _Atomic int *second, int third) {
    return syscall(SYS_futex, word, op, value, timeout, second, third);
}
static void acquire(int flag) {
    int was = 0;
    if (atomic_compare_exchange_strong(&lock, &was, 1)) return;
    if (was != 2) was = atomic_exchange(&lock, 2);
    while (was) {
        futex(&lock, FUTEX_WAIT | flag, 2, 0, 0, 0);
        was = atomic_exchange(&lock, 2);
    }
}
static void release(int flag) {
    if (atomic_exchange(&lock, 0) == 2) futex(&lock, FUTEX_WAKE | flag, 1, 0, 0, 0);
}
static uint64_t body(int me) {
    uint64_t seen = (uint64_t)me;
    for (int i = 0; i < par_rounds; i++) {
        int flag = FUTEX_PRIVATE_FLAG;
        acquire(flag);
        seen = mix(seen, (uint64_t)counter++);
        release(flag);
        // A wait that ends by a wake, a change of the word, or its time.
        int before = sequence;
        struct timespec brief = {0, 20000};
        long result;
        switch ((i + me) % 6) {
        case 0:
            sleepers++;
            result = futex(&sequence, FUTEX_WAIT, before, &brief, 0, 0);
            sleepers--;
            seen = mix(seen, result == -1 ? (uint64_t)errno : (uint64_t)result);
            break;
        case 1:
            sequence++;
            seen = mix(seen, (uint64_t)futex(&sequence, FUTEX_WAKE, INT_MAX, 0, 0, 0));
            break;
        case 2:
            sequence++;
            seen = mix(seen, (uint64_t)futex(&sequence, FUTEX_REQUEUE, 1, (void *)1, &target, 0));
            break;
        case 3:
            result = futex(&sequence, FUTEX_CMP_REQUEUE, 1, (void *)5, &target, before);
            seen = mix(seen, result == -1 ? (uint64_t)errno : (uint64_t)result);
            break;
        case 4:
            seen = mix(seen, (uint64_t)futex(&target, FUTEX_WAKE_OP, 1, (void *)1, &other_word, FUTEX_OP(FUTEX_OP_ADD, 1, FUTEX_OP_CMP_GT, 3)));
            seen = mix(seen, (uint64_t)other_word);
            break;
        default: {
            struct timespec now;
            clock_gettime(CLOCK_MONOTONIC, &now);
            now.tv_nsec += 20000;
            if (now.tv_nsec >= 1000000000) now.tv_sec++, now.tv_nsec -= 1000000000;
            result = syscall(SYS_futex, &target, FUTEX_WAIT_BITSET, (int)target, &now, 0, 5);
            seen = mix(seen, result == -1 ? (uint64_t)errno : (uint64_t)result);
        }
        }
    }
    return seen;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 3, 800);
    par_run("seen", body);
    CHECK(counter == (long)par_threads * par_rounds && sleepers == 0);
    // The additions of WAKE_OP are atomic.
    int expected = 0;
    for (int t = 0; t < par_threads; t++)
        for (int i = 0; i < par_rounds; i++) expected += (i + t) % 6 == 4;
    CHECK(other_word == expected);
    printf("sequence %d, word %d\n", sequence, other_word);
    return 0;
}
