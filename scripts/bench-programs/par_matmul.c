// Matrix product, rows by thread: two matrices that all read, one that nobody shares.
#include "par.h"
static double *a, *b, *c;
static void *body(void *arg) {
    long first, last;
    part(size, (int)(long)arg, &first, &last);
    for (long i = first; i < last; i++)
        for (long k = 0; k < size; k++)
            for (long j = 0; j < size; j++) c[i * size + j] += a[i * size + k] * b[k * size + j];
    return 0;
}
int main(int argc, char **argv) {
    arguments(argc, argv, 1300);
    size_t n = (size_t)(size * size);
    a = malloc(n * sizeof *a), b = malloc(n * sizeof *b), c = calloc(n, sizeof *c);
    for (long i = 0; i < size * size; i++) a[i] = (double)(i % 97), b[i] = (double)(i % 89);
    run_all(body);
    double sum = 0;
    for (size_t i = 0; i < n; i += 101) sum += c[i];
    printf("%.3f\n", sum);
    return 0;
}
