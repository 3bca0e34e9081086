// Barriers: a stencil whose neighbours exchange borders in plain memory between barriers of pthreads, and of our own that reverses
// its sense. The result is exact.
#include "par.h"
enum { CELLS = 600 };
static long grid[2][MAX_THREADS * CELLS + 2];
static pthread_barrier_t barrier;
static struct gate gate;
static uint64_t body(int me) {
    for (int i = 0; i < par_rounds; i++) {
        long *from = grid[i % 2], *to = grid[1 - i % 2];
        for (int k = 1 + me * CELLS; k <= (me + 1) * CELLS; k++) to[k] = (from[k - 1] * 3 + from[k] * 5 + from[k + 1] * 7) % 1000003;
        if (i % 2)
            pthread_barrier_wait(&barrier);
        else
            par_gate(&gate, (unsigned)par_threads);
    }
    return hash_bytes(&grid[par_rounds % 2][1 + me * CELLS], CELLS * sizeof(long));
}
int main(int argc, char **argv) {
    par_args(argc, argv, 2, 300);
    pthread_barrier_init(&barrier, 0, (unsigned)par_threads);
    for (int i = 0; i < MAX_THREADS * CELLS + 2; i++) grid[0][i] = i;
    par_run("stencil", body);
    // The same, alone.
    static long check[2][MAX_THREADS * CELLS + 2];
    int n = par_threads * CELLS;
    for (int i = 0; i < MAX_THREADS * CELLS + 2; i++) check[0][i] = i;
    for (int i = 0; i < par_rounds; i++) {
        long *from = check[i % 2], *to = check[1 - i % 2];
        // Cells outside of everybody's part keep their first value in one grid and 0 in the other.
        for (int k = 1; k <= n; k++) to[k] = (from[k - 1] * 3 + from[k] * 5 + from[k + 1] * 7) % 1000003;
    }
    CHECK(memcmp(check[par_rounds % 2] + 1, grid[par_rounds % 2] + 1, (size_t)n * sizeof(long)) == 0);
    return 0;
}
