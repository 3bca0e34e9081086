// A program built with AddressSanitizer, which wants fixed places for its shadow and its heap.
// build: -fsanitize=address,undefined
// varies
#include "par.h"
int __asan_address_is_poisoned(void const volatile *);
const char *__asan_default_options(void);
// Leaks are looked for by a process that shares the program's memory and traces it.
const char *__asan_default_options(void) { return "detect_leaks=0"; }
static char *volatile handed[MAX_THREADS];
static volatile long racy;
static uint64_t body(int me) {
    uint64_t seen = 0;
    for (int i = 0; i < par_rounds; i++) {
        size_t size = 1 + (size_t)(i * 37 % 3000);
        char *own = malloc(size);
        memset(own, i, size);
        racy += own[size - 1];
        seen = mix(seen, (uint64_t)racy);
        CHECK(__asan_address_is_poisoned(own + size) && !__asan_address_is_poisoned(own + size - 1));
        char *other = __atomic_exchange_n(&handed[(me + 1) % par_threads], own, __ATOMIC_ACQ_REL);
        if (other) {
            seen = mix(seen, (uint64_t)other[0]);
            free(other);
            if (i == par_rounds - 1) seen = mix(seen, (uint64_t)__asan_address_is_poisoned(other));
        }
    }
    return seen;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 3, 300);
    par_run("seen", body);
    for (int i = 0; i < MAX_THREADS; i++) free(handed[i]);
    return 0;
}
