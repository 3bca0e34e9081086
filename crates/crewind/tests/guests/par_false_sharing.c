// False sharing: each thread counts in a word of its own; all words in one line, then one line each in one page, then bytes of
// one word. Nothing gets lost. Now and then each looks at its neighbour.
// varies
#include "par.h"
static char memory[4 * PAGE] __attribute__((aligned(4096)));
static size_t spacing;
static uint64_t body(int me) {
    uint64_t seen = (uint64_t)me;
    volatile char *mine = memory + (size_t)me * spacing, *other = memory + (size_t)((me + 1) % par_threads) * spacing;
    for (int i = 0; i < par_rounds; i++) {
        if (spacing == 1)
            ++*(volatile unsigned char *)mine;
        else
            ++*(volatile unsigned *)mine;
        if (i % 256 == 0) seen = mix(seen, spacing == 1 ? *(volatile unsigned char *)other : *(volatile unsigned *)other);
    }
    return seen;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 2, 1000000);
    static const size_t spacings[] = {1, 4, 8, 64, 128};
    for (int s = 0; s < 5; s++) {
        spacing = spacings[s];
        memset(memory, 0, sizeof memory);
        par_run("neighbours", body);
        for (int t = 0; t < par_threads; t++) {
            char *mine = memory + (size_t)t * spacing;
            if (spacing == 1)
                CHECK(*(unsigned char *)mine == (unsigned char)par_rounds);
            else
                CHECK(*(unsigned *)mine == (unsigned)par_rounds);
        }
    }
    puts("exact");
    return 0;
}
