// Data that one thread changes now and then and others read all the time; readers start late, one after the other, when the
// writer has long written what they read first. Entries lie over many pages.
// varies
#include "par.h"
enum { ENTRIES = 512, GAP = 40 };
static volatile long table[ENTRIES * GAP];
static _Atomic int done;
static _Atomic long written;
static void *reader(void *arg) {
    uint64_t seen = (uint64_t)(intptr_t)arg;
    do {
        for (int i = 0; i < ENTRIES; i++) seen = mix(seen, (uint64_t)table[i * GAP]);
        // A value that has been announced must be there.
        long n = written;
        CHECK(table[n % ENTRIES * GAP] >= n);
        seen = mix(seen, (uint64_t)n);
    } while (!done);
    return (void *)seen;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 3, 8000);
    pthread_t readers[MAX_THREADS];
    int started = 0;
    for (long n = 1; n <= par_rounds; n++) {
        table[n % ENTRIES * GAP] = n;
        written = n;
        for (volatile int pause = 0; pause < 200; pause++) {
        }
        if (n % (par_rounds / par_threads + 1) == 0 && started < par_threads - 1) {
            CHECK(pthread_create(&readers[started], 0, reader, (void *)(intptr_t)started) == 0);
            started++;
        }
    }
    done = 1;
    printf("readers:");
    for (int i = 0; i < started; i++) {
        void *seen;
        CHECK(pthread_join(readers[i], &seen) == 0);
        printf(" %016lx", (uint64_t)seen);
    }
    printf("\nwritten %ld\n", written);
    return 0;
}
