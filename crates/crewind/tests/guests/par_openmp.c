// OpenMP: parallel loops with static, dynamic and guided schedules, reductions, critical sections, atomics, tasks, barriers, and a race.
// varies
// build: -fopenmp -O2
// timeout: 120
#include "par.h"
#include <omp.h>
static long fib(int n) {
    if (n < 12) return n < 2 ? n : fib(n - 1) + fib(n - 2);
    long a, b;
#pragma omp task shared(a)
    a = fib(n - 1);
    b = fib(n - 2);
#pragma omp taskwait
    return a + b;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 2, 20000);
    omp_set_num_threads(par_threads);
    static double data[100000];
    double sum = 0;
    long order = 0, exact = 0;
    volatile long racy = 0;
#pragma omp parallel for schedule(static)
    for (int i = 0; i < 100000; i++) data[i] = i * 0.5;
#pragma omp parallel for schedule(dynamic, 100) reduction(+ : sum)
    for (int i = 0; i < 100000; i++) sum += data[i];
#pragma omp parallel for schedule(guided)
    for (int i = 0; i < par_rounds; i++) {
        racy = racy + 1;
#pragma omp atomic
        exact++;
        if (i % 100 == 0) {
#pragma omp critical
            order = (long)mix((uint64_t)order, (uint64_t)i);
        }
    }
    long result = 0;
#pragma omp parallel
    {
        for (int i = 0; i < 20; i++) {
#pragma omp barrier
        }
#pragma omp single
        result = fib(20);
    }
    CHECK(exact == par_rounds && result == 6765);
    printf("sum %.17g, order %016lx, racy %ld\n", sum, (unsigned long)order, racy);
    return 0;
}
