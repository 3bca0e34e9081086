// An unsynchronised counter: the read and the write are separate instructions, then one (inc without lock), then of
// one byte. Increments get lost; how many, and what each thread read, must come out again.
// varies
#include "par.h"
static volatile long counter;
static volatile unsigned char small;
static uint64_t body(int me) {
    uint64_t seen = (uint64_t)me;
    for (int i = 0; i < par_rounds; i++) {
        long value = counter;
        counter = value + 1;
        seen = mix(seen, (uint64_t)value);
    }
    for (int i = 0; i < par_rounds; i++) {
        __asm__ volatile("incq %0" : "+m"(counter));
        __asm__ volatile("incb %0" : "+m"(small));
        if (i % 16 == 0) seen = mix(seen, (uint64_t)counter + small);
    }
    return seen;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 2, 1000000);
    par_run("seen", body);
    CHECK(counter > 0 && counter <= 2L * par_threads * par_rounds);
    printf("counter %ld, byte %d\n", counter, small);
    return 0;
}
