// Atomic operations of 1, 2, 4, 8 and 16 bytes: add, sub, or, xor, exchange, compare-and-exchange (16 bytes: cmpxchg16b), bit test
// and set. Totals are exact; what each operation returned is digested.
// varies
// build: -mcx16
#include "par.h"
static uint8_t a1;
static uint16_t a2;
static uint32_t a4;
static uint64_t a8, bits, exchanged, inverted;
static __int128 a16 __attribute__((aligned(16)));
static uint32_t in_page_border[2] __attribute__((aligned(4096)));
static uint64_t body(int me) {
    uint64_t seen = (uint64_t)me, given = 0;
    for (int i = 0; i < par_rounds; i++) {
        seen = mix(seen, __atomic_fetch_add(&a1, 1, __ATOMIC_SEQ_CST));
        seen = mix(seen, __atomic_fetch_add(&a2, 3, __ATOMIC_SEQ_CST));
        seen = mix(seen, __atomic_fetch_sub(&a4, 5, __ATOMIC_SEQ_CST));
        seen = mix(seen, __atomic_fetch_add(&a8, 7, __ATOMIC_SEQ_CST));
        // A loop around cmpxchg.
        seen = mix(seen, __atomic_fetch_xor(&bits, 1ull << (me % 64), __ATOMIC_SEQ_CST));
        seen = mix(seen, __atomic_fetch_nand(&inverted, (uint64_t)i, __ATOMIC_SEQ_CST));
        given += __atomic_exchange_n(&exchanged, 1, __ATOMIC_SEQ_CST);
        __int128 old = a16, new;
        do new = old + 1 + ((__int128)1 << 64);
        while (!__sync_bool_compare_and_swap(&a16, old, new) && (old = a16, 1));
        seen = mix(seen, (uint64_t)(new >> 64));
        unsigned char carry;
        __asm__ volatile("lock btsl %2, %0\n setc %1" : "+m"(in_page_border[0]), "=q"(carry) : "r"(i & 31) : "cc");
        __asm__ volatile("lock negl %0\n lock notl %0" : "+m"(in_page_border[1])::"cc");
        seen = mix(seen, carry);
    }
    return mix(seen, given);
}
int main(int argc, char **argv) {
    par_args(argc, argv, 2, 15000);
    par_run("seen", body);
    uint64_t n = (uint64_t)par_threads * (uint64_t)par_rounds;
    CHECK(a1 == (uint8_t)n && a2 == (uint16_t)(3 * n) && a4 == (uint32_t)-(5 * n) && a8 == 7 * n);
    CHECK((uint64_t)a16 == n && (uint64_t)(a16 >> 64) == n);
    // neg and not are each atomic, but not together; both change the word.
    printf("bits %016lx, inverted %016lx, word %08x\n", bits, inverted, in_page_border[1]);
    return 0;
}
