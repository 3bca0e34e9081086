// String instructions and vectors that race over line and page borders: rep movs and stos in all sizes and both directions, repe cmps,
// repne scas, and moves of 16, 32 and 64 bytes, aligned and not, streaming too.
// varies
#include "par.h"
static unsigned char memory[4 * PAGE] __attribute__((aligned(4096)));
static int has_avx, has_avx512;
static unsigned char *place(uint64_t r, size_t room) {
    // Half of them over a page border, the rest anywhere.
    size_t border = (1 + r % 3) * PAGE, near = (r >> 8) % room;
    return r & 1 << 20 ? memory + border - near : memory + (r >> 24) % (sizeof memory - 2 * room - 16) + 8;
}
static uint64_t vectors(unsigned char *a, unsigned char *b, uint64_t kind) {
    unsigned char *aligned = (unsigned char *)((uintptr_t)b & -(uintptr_t)64);
    uint64_t result = 0;
    switch (kind) {
    case 0: __asm__ volatile("movdqu (%1), %%xmm0\n movdqu %%xmm0, (%2)\n movq %%xmm0, %0" : "=r"(result) : "r"(a), "r"(b) : "xmm0", "memory"); break;
    case 1: __asm__ volatile("movaps (%1), %%xmm1\n paddd 16(%1), %%xmm1\n movntdq %%xmm1, 32(%1)\n movq %%xmm1, %0" : "=r"(result) : "r"(aligned) : "xmm1", "memory"); break;
    case 2:
        if (has_avx) __asm__ volatile("vmovdqu (%1), %%ymm2\n vpxor (%2), %%ymm2, %%ymm2\n vmovdqu %%ymm2, (%2)\n vmovq %%xmm2, %0\n vzeroupper" : "=r"(result) : "r"(a), "r"(b) : "xmm2", "memory");
        break;
    default:
        if (has_avx512) __asm__ volatile("vmovdqu64 (%1), %%zmm3\n vpaddq (%2), %%zmm3, %%zmm3\n vmovdqu64 %%zmm3, (%2)\n vmovq %%xmm3, %0\n vzeroupper" : "=r"(result) : "r"(a), "r"(b) : "xmm3", "memory");
    }
    return result;
}
static uint64_t body(int me) {
    uint64_t seen = (uint64_t)me, state = (uint64_t)me * 99 + 3;
    for (int i = 0; i < par_rounds; i++) {
        uint64_t r = next_random(&state), r2 = next_random(&state);
        size_t count = (r >> 44) % 20 == 0 ? 600 : (r >> 50) % 40;
        unsigned char *a = place(r, 640), *b = place(r2, 640), *si = a, *di = b;
        size_t left = count;
        uint64_t value = seen;
        switch ((r >> 32) % 12) {
        case 0: __asm__ volatile("rep movsb" : "+S"(si), "+D"(di), "+c"(left)::"memory"); break;
        case 1: left /= 2; __asm__ volatile("rep movsw" : "+S"(si), "+D"(di), "+c"(left)::"memory"); break;
        case 2: left /= 8; __asm__ volatile("rep movsq" : "+S"(si), "+D"(di), "+c"(left)::"memory"); break;
        case 3: __asm__ volatile("rep stosb" : "+D"(di), "+c"(left) : "a"(value) : "memory"); break;
        case 4: left /= 4; __asm__ volatile("rep stosl" : "+D"(di), "+c"(left) : "a"(value) : "memory"); break;
        case 5: left = left / 2 + 1; __asm__ volatile("std\n rep movsb\n cld" : "+S"(si), "+D"(di), "+c"(left)::"memory"); break;
        case 6: __asm__ volatile("test %0, %0\n repe cmpsb" : "+S"(si), "+D"(di), "+c"(left)::"memory", "cc"); value = left; break;
        case 7: __asm__ volatile("test %0, %0\n repne scasb" : "+D"(di), "+c"(left) : "a"(value) : "memory", "cc"); value = left; break;
        default: value = vectors(a, b, (r >> 32) % 12 - 8);
        }
        seen = mix(seen, value + *a + ((uint64_t)*b << 8));
    }
    return seen;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 2, 10000);
    has_avx = __builtin_cpu_supports("avx2");
    has_avx512 = __builtin_cpu_supports("avx512f");
    for (size_t i = 0; i < sizeof memory; i++) memory[i] = (unsigned char)(i * 7);
    par_run("seen", body);
    printf("%016lx\n", hash_bytes(memory, sizeof memory));
    return 0;
}
