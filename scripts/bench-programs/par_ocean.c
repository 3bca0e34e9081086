// Red-black relaxation on a grid, bands of rows, two barriers and a reduction under a lock per sweep.
#include "par.h"
static double *grid, residual;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void *body(void *arg) {
    long first, last;
    part(size - 2, (int)(long)arg, &first, &last);
    for (int sweep = 0; sweep < 100; sweep++) {
        double mine = 0;
        for (int colour = 0; colour < 2; colour++) {
            for (long i = first + 1; i <= last; i++) {
                double *row = grid + i * size;
                for (long j = 1 + (i + colour) % 2; j < size - 1; j += 2) {
                    double change = 0.25 * (row[j - 1] + row[j + 1] + row[j - size] + row[j + size]) - row[j];
                    row[j] += 1.2 * change;
                    mine = fmax(mine, fabs(change));
                }
            }
            wait_for_all();
        }
        pthread_mutex_lock(&lock);
        residual = fmax(residual, mine);
        pthread_mutex_unlock(&lock);
    }
    return 0;
}
int main(int argc, char **argv) {
    arguments(argc, argv, 1500);
    grid = calloc((size_t)(size * size), sizeof *grid);
    for (long i = 0; i < size; i++) grid[i] = 1, grid[i * size] = (double)i / (double)size;
    run_all(body);
    double sum = 0;
    for (long i = 0; i < size * size; i++) sum += grid[i];
    printf("%.9f %.9f\n", sum, residual);
    return 0;
}
