// LU decomposition without pivots, rows dealt out round robin, a barrier per column: the pivot row is read by all.
#include "par.h"
static double *m;
static void *body(void *arg) {
    for (long k = 0; k < size; k++) {
        const double *pivot = m + k * size;
        for (long i = k + 1; i < size; i++) {
            if (i % threads != (long)arg) continue;
            double *row = m + i * size, factor = row[k] / pivot[k];
            row[k] = factor;
            for (long j = k + 1; j < size; j++) row[j] -= factor * pivot[j];
        }
        wait_for_all();
    }
    return 0;
}
int main(int argc, char **argv) {
    arguments(argc, argv, 1700);
    m = malloc(sizeof *m * (size_t)(size * size));
    for (long i = 0; i < size * size; i++) m[i] = (double)(i * 7919 % 1009) / 1009 + (i % (size + 1) == 0 ? (double)size : 0);
    run_all(body);
    double sum = 0;
    for (long i = 0; i < size; i++) sum += log(fabs(m[i * size + i]));
    printf("%.9f\n", sum);
    return 0;
}
