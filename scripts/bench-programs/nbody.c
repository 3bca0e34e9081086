// Five bodies under gravity. Argument: steps.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
struct body {
    double x[3], v[3], m;
};
static struct body b[5] = {{{0, 0, 0}, {0, 0, 0}, 39.47},
                           {{4.84, -1.16, -.10}, {.6, 2.8, -.02}, .037},
                           {{8.34, 4.12, -.4}, {-1.01, 1.8, .008}, .011},
                           {{12.89, -15.11, -.22}, {1.08, .86, -.01}, .0017},
                           {{15.37, -25.9, .179}, {.979, .594, -.034}, .002}};
int main(int argc, char **argv) {
    long steps = argc > 1 ? atol(argv[1]) : 5000000;
    for (long s = 0; s < steps; s++) {
        for (int i = 0; i < 5; i++)
            for (int j = i + 1; j < 5; j++) {
                double d[3], q = 0;
                for (int k = 0; k < 3; k++) d[k] = b[i].x[k] - b[j].x[k], q += d[k] * d[k];
                double f = 0.001 / (q * sqrt(q));
                for (int k = 0; k < 3; k++) b[i].v[k] -= d[k] * b[j].m * f, b[j].v[k] += d[k] * b[i].m * f;
            }
        for (int i = 0; i < 5; i++)
            for (int k = 0; k < 3; k++) b[i].x[k] += 0.001 * b[i].v[k];
    }
    printf("%.12f\n", b[0].x[0]);
}
