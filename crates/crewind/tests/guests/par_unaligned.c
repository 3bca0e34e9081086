// Unaligned accesses: locked ones within a line, which lose nothing, and plain ones of 2, 4 and 8 bytes over line and page borders,
// which may be torn.
// varies
#include "par.h"
static unsigned char memory[3 * PAGE] __attribute__((aligned(4096)));
static uint64_t body(int me) {
    uint64_t seen = (uint64_t)me, torn = 0;
    unsigned char *locked = memory + 100, *line = memory + 1024 - 3, *page = memory + 2 * PAGE - 5;
    uint64_t pattern = 0x0101010101010101u * (unsigned)(me + 1);
    for (int i = 0; i < par_rounds; i++) {
        __asm__ volatile("lock incl 1(%0)\n lock addq $1, 7(%0)\n lock incw 17(%0)" ::"r"(locked) : "memory", "cc");
        uint32_t one = 1;
        __asm__ volatile("lock xaddl %0, 21(%1)" : "+r"(one) : "r"(locked) : "memory", "cc");
        seen = mix(seen, one);
        *(volatile uint64_t __attribute__((aligned(1))) *)line = pattern;
        *(volatile uint64_t __attribute__((aligned(1))) *)page = pattern;
        uint64_t a = *(volatile uint64_t __attribute__((aligned(1))) *)line, b = *(volatile uint64_t __attribute__((aligned(1))) *)page;
        torn += (a != (a & 0xff) * 0x0101010101010101u) + (b != (b & 0xff) * 0x0101010101010101u);
        seen = mix(seen, a ^ b << 1);
        *(volatile uint32_t __attribute__((aligned(1))) *)(page - 60) += (uint32_t)i;
        *(volatile uint16_t __attribute__((aligned(1))) *)(memory + PAGE - 1) = (uint16_t)i;
        seen = mix(seen, *(volatile uint16_t __attribute__((aligned(1))) *)(memory + PAGE - 1));
    }
    return mix(seen, torn);
}
int main(int argc, char **argv) {
    par_args(argc, argv, 2, 30000);
    par_run("seen", body);
    uint64_t expected = (uint64_t)par_threads * (uint64_t)par_rounds, quad;
    uint32_t word, added;
    memcpy(&word, memory + 101, 4);
    memcpy(&quad, memory + 107, 8);
    memcpy(&added, memory + 121, 4);
    CHECK(word == (uint32_t)expected && quad == expected && added == (uint32_t)expected);
    printf("%016lx\n", hash_bytes(memory, sizeof memory));
    return 0;
}
