// Shared by the par_ programs: threads that really run at once, and a digest of what each of them saw.
//
// Arguments: number of threads, number of rounds (0 or none: the program's own). What comes out may differ from run to run; a
// replay must repeat it to the bit. Nothing depends on timing for its end: each wait is for something that another
// thread certainly does.
#ifndef PAR_H
#define PAR_H
#include "check.h"
#include <pthread.h>
#include <stdatomic.h>

enum { MAX_THREADS = 64, LINE = 64, PAGE = 4096 };

static int par_threads, par_rounds;

static inline void par_args(int argc, char **argv, int threads, int rounds) {
    par_threads = argc > 1 && atoi(argv[1]) > 0 ? atoi(argv[1]) : threads;
    par_rounds = argc > 2 && atoi(argv[2]) > 0 ? atoi(argv[2]) : rounds;
    CHECK(par_threads <= MAX_THREADS);
}

// Folds a value into a digest; order matters.
static inline uint64_t mix(uint64_t digest, uint64_t value) {
    digest = (digest ^ value) * 0x9e3779b97f4a7c15;
    return digest ^ digest >> 29;
}

// One step of a spin wait: yields now and then, because there may be more threads than cores.
static inline void par_relax(unsigned *spins) {
    if (++*spins % 64 == 0)
        sched_yield();
    else
        __builtin_ia32_pause();
}

// All threads of a group come here before any goes on; usable again and again.
struct gate {
    _Atomic unsigned arrived, round;
};
static inline void par_gate(struct gate *gate, unsigned members) {
    unsigned round = gate->round, spins = 0;
    if (atomic_fetch_add(&gate->arrived, 1) + 1 == members) {
        gate->arrived = 0;
        gate->round = round + 1;
        return;
    }
    while (gate->round == round) par_relax(&spins);
}

struct par_thread {
    uint64_t (*body)(int);
    int me;
    uint64_t digest;
    pthread_t id;
};
static struct par_thread par_all[MAX_THREADS];
static struct gate par_start;

static void *par_enter(void *arg) {
    struct par_thread *thread = arg;
    par_gate(&par_start, (unsigned)par_threads);
    thread->digest = thread->body(thread->me);
    return 0;
}

// Starts all threads.
static inline void par_begin(uint64_t (*body)(int)) {
    for (int i = 0; i < par_threads; i++) {
        par_all[i].body = body;
        par_all[i].me = i;
        CHECK(pthread_create(&par_all[i].id, 0, par_enter, &par_all[i]) == 0);
    }
}

// Waits for all threads and prints their digests.
static inline void par_end(const char *what) {
    for (int i = 0; i < par_threads; i++) CHECK(pthread_join(par_all[i].id, 0) == 0);
    printf("%s:", what);
    for (int i = 0; i < par_threads; i++) printf(" %016lx", par_all[i].digest);
    printf("\n");
    fflush(stdout);
}

static inline void par_run(const char *what, uint64_t (*body)(int)) {
    par_begin(body);
    par_end(what);
}
#endif
