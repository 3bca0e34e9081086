// How fast does this machine compute? Prints the cpu seconds of a fixed amount of work, of integers with a table in
// memory or of vectors.

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static uint32_t table[4096];
static float a[1024], b[1024];

static uint32_t integers(void) {
    uint32_t x = 1;
    for (int i = 0; i < 30000000; i++) {
        x = x * 1664525 + 1013904223;
        uint32_t *slot = &table[x >> 20];
        if (*slot & 1)
            x ^= *slot;
        *slot += x;
    }
    return x;
}

__attribute__((optimize("O3"))) static uint32_t vectors(void) {
    for (int i = 0; i < 1024; i++)
        b[i] = (float)i;
    for (int round = 0; round < 50000; round++)
        for (int i = 0; i < 1024; i++)
            a[i] = a[i] * 0.5f + b[i];
    return (uint32_t)a[5];
}

int main(int argc, char **argv) {
    if (argc != 2)
        return 2;
    volatile uint32_t sink = strcmp(argv[1], "vector") ? integers() : vectors();
    (void)sink;
    printf("%.4f\n", (double)clock() / CLOCKS_PER_SEC);
    return 0;
}
