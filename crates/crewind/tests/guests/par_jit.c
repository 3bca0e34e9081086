// Code that one thread writes and others execute: functions published by pointer, constants of running code exchanged in place,
// and pages that are written, made executable, and written again. All threads count in a word beside code, as compilers at run time do.
// varies
#include "par.h"
typedef int (*function)(void);
enum { SLOTS = 16, SLOT = 64 };
static unsigned char *code, *protected_code;
static _Atomic(function) published;
static _Atomic int done, version;
static _Atomic long calls;
static pthread_rwlock_t rw = PTHREAD_RWLOCK_INITIALIZER;
static void emit(unsigned char *at, int value) {
    // mov $value, %eax with the constant aligned, so that it can be exchanged in one store.
    at[0] = at[1] = at[2] = 0x90;
    at[3] = 0xb8;
    memcpy(at + 4, &value, 4);
    at[8] = 0xc3;
}
static uint64_t body(int me) {
    uint64_t seen = (uint64_t)me;
    unsigned spins = 0;
    if (me == 0) {
        for (int i = 1; i <= par_rounds; i++) {
            // New code where nobody executes: slots are used again long after they were replaced.
            unsigned char *slot = code + PAGE + i % (SLOTS * 64) * SLOT;
            emit(slot, i);
            published = (function)(void *)slot;
            version = i;
            // A running function changes its constant.
            __atomic_store_n((int *)(void *)(code + 4), i, __ATOMIC_RELEASE);
            if (i % 8 == 0) {
                pthread_rwlock_wrlock(&rw);
                SYS(mprotect(protected_code, PAGE, PROT_READ | PROT_WRITE));
                emit(protected_code, i);
                SYS(mprotect(protected_code, PAGE, PROT_READ | PROT_EXEC));
                pthread_rwlock_unlock(&rw);
            }
            for (int k = 0; k < 20; k++) par_relax(&spins);
        }
        done = 1;
        return seen;
    }
    do {
        __atomic_fetch_add((long *)(void *)(code + 2048), 1, __ATOMIC_RELAXED);
        calls++;
        int least = version;
        int value = published();
        CHECK(value >= least);
        seen = mix(seen, (uint64_t)value);
        value = ((function)(void *)code)();
        CHECK(value >= 0 && value <= par_rounds);
        seen = mix(seen, (uint64_t)value);
        pthread_rwlock_rdlock(&rw);
        value = ((function)(void *)protected_code)();
        pthread_rwlock_unlock(&rw);
        CHECK(value % 8 == 0);
        seen = mix(seen, (uint64_t)value);
        par_relax(&spins);
    } while (!done);
    return seen;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 3, 200);
    size_t size = PAGE + SLOTS * 64 * SLOT;
    code = SYS((unsigned char *)mmap(0, size, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    protected_code = SYS((unsigned char *)mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    emit(code, 0);
    emit(code + PAGE, 0);
    emit(protected_code, 0);
    SYS(mprotect(protected_code, PAGE, PROT_READ | PROT_EXEC));
    published = (function)(void *)(code + PAGE);
    par_run("seen", body);
    CHECK(*(long *)(void *)(code + 2048) == calls);
    printf("last %d\n", ((function)(void *)code)());
    return 0;
}
