// Litmus test IRIW: two writers of two cells, two readers that read them in opposite order. The readers must not disagree on
// which was written first. Runs with a multiple of four threads.
// varies
#include "par.h"
enum { CHUNK = 64 };
static volatile int *x, *y;
static unsigned char *read_back;
static struct gate gate;
static uint64_t body(int me) {
    uint64_t seen = 3;
    int groups = par_threads / 4, group = me / 4;
    for (int i = 0; i < par_rounds; i++) {
        if (i % CHUNK == 0) par_gate(&gate, (unsigned)par_threads);
        int at = i * groups + group, first, second;
        switch (me % 4) {
        case 0: x[at] = 1; continue;
        case 1: y[at] = 1; continue;
        case 2:
            first = x[at];
            second = y[at];
            break;
        default:
            first = y[at];
            second = x[at];
        }
        int result = first * 2 + second;
        read_back[at * 2 + me % 2] = (unsigned char)result;
        seen = mix(seen, (uint64_t)result);
    }
    return seen;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 4, 40000);
    par_threads = (par_threads + 3) / 4 * 4;
    size_t n = (size_t)par_rounds * (size_t)par_threads / 4;
    x = calloc(n, sizeof *x);
    y = calloc(n, sizeof *y);
    read_back = calloc(n, 2);
    par_run("readers", body);
    long counts[16] = {0};
    for (size_t i = 0; i < n; i++) counts[read_back[2 * i] * 4 + read_back[2 * i + 1]]++;
    for (int i = 0; i < 16; i++) printf("%d%d%d%d %ld\n", i >> 3, i >> 2 & 1, i >> 1 & 1, i & 1, counts[i]);
    CHECK(counts[2 * 4 + 2] == 0);
    return 0;
}
