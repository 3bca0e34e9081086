// Litmus test MP: the first thread writes data and then a flag, with plain stores; the others read flag and then data. On x86
// the data is there when the flag is. Data and flag lie in one line, in two lines and in two pages.
// varies
#include "par.h"
enum { CHUNK = 64 };
static volatile int *data, *flags;
static size_t stride;
static struct gate gate;
static long outcomes[MAX_THREADS][4];
static uint64_t body(int me) {
    uint64_t seen = 2;
    for (int i = 0; i < par_rounds; i++) {
        if (i % CHUNK == 0) par_gate(&gate, (unsigned)par_threads);
        size_t at = (size_t)i * stride;
        if (me == 0) {
            data[at] = i * 3 + 1;
            flags[at] = 1;
            continue;
        }
        int flag = flags[at], value = data[at];
        CHECK(value == 0 || value == i * 3 + 1);
        CHECK(!(flag && !value));
        outcomes[me][flag * 2 + (value != 0)]++;
        seen = mix(seen, (uint64_t)(flag * 2 + (value != 0)));
    }
    return seen;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 2, 40000);
    for (int layout = 0; layout < 3; layout++) {
        stride = layout == 0 ? 2 : layout == 1 ? 32 : 1;
        size_t size = (size_t)par_rounds * stride * 4 + 2 * PAGE;
        char *memory = SYS((char *)mmap(0, 2 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        data = (volatile int *)memory;
        flags = layout == 0 ? data + 1 : layout == 1 ? data + 16 : (volatile int *)(memory + (size & -(size_t)PAGE));
        memset(outcomes, 0, sizeof outcomes);
        par_run(layout == 0 ? "one line" : layout == 1 ? "two lines" : "two pages", body);
        for (int t = 1; t < par_threads; t++)
            printf("reader %d: 00 %ld, 01 %ld, 10 %ld, 11 %ld\n", t, outcomes[t][0], outcomes[t][1], outcomes[t][2], outcomes[t][3]);
        SYS(munmap(memory, 2 * size));
    }
    return 0;
}
