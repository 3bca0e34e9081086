// The Mandelbrot set; rows are taken from a counter, whoever is free takes the next.
#include "par.h"
static _Atomic long next_row;
static unsigned char *image;
static void *body(void *arg) {
    (void)arg;
    for (long row; (row = atomic_fetch_add(&next_row, 1)) < size;)
        for (long column = 0; column < size; column++) {
            double cx = (double)column / (double)size * 3 - 2.2, cy = (double)row / (double)size * 3 - 1.5, x = 0, y = 0;
            int n = 0;
            while (n < 250 && x * x + y * y < 4) {
                double t = x * x - y * y + cx;
                y = 2 * x * y + cy;
                x = t;
                n++;
            }
            image[row * size + column] = (unsigned char)n;
        }
    return 0;
}
int main(int argc, char **argv) {
    arguments(argc, argv, 2200);
    image = malloc((size_t)(size * size));
    run_all(body);
    uint64_t sum = 0;
    for (long i = 0; i < size * size; i++) sum = sum * 31 + image[i];
    printf("%016lx\n", sum);
    return 0;
}
