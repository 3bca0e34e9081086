// Instructions of all kinds on memory that another process keeps changing.
// varies
// build: -O1 -mavx2
#include "share.h"
#include <immintrin.h>
static struct {
    _Alignas(64) volatile uint64_t data[64];
    _Alignas(64) uint64_t out[64];
    _Alignas(64) unsigned __int128 wide;
    _Atomic int stop;
    void (*volatile pointer)(void);
} *s;
static uint64_t called;
static void one(void) { called += 1; }
static void two(void) { called += 100; }
static uint64_t changer(void) {
    uint64_t i = 1;
    while (!s->stop) {
        for (int k = 0; k < 64; k++) s->data[k] = i * 0x0101010101010101 + k;
        s->pointer = i % 2 ? one : two;
        i++;
    }
    return 0;
}
static uint64_t user(void) {
    uint64_t digest = 0, own[64] = {0};
    for (int round = 0; round < par_rounds; round++) {
        void *to = own, *from = (void *)s->data;
        uint64_t count = 40, value = 0;
        __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
        digest = mix(digest, own[3]);
        to = s->out, count = 9, value = digest;
        __asm__ volatile("rep stosq" : "+D"(to), "+c"(count), "+a"(value) : : "memory");
        CHECK(s->out[8] == digest);
        to = s->out + 8, from = s->out, count = 8;
        __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
        CHECK(s->out[15] == digest);
        // Compares until the first difference.
        to = own, from = (void *)s->data, count = 64;
        __asm__ volatile("repe cmpsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory", "cc");
        digest = mix(digest, count);
        from = (void *)s->data;
        __asm__ volatile("lodsq" : "=a"(value), "+S"(from) : : "memory");
        digest = mix(digest, value);
        __m256i v = _mm256_loadu_si256((void *)(s->data + 1));
        __m256i mask = _mm256_setr_epi32(-1, 0, -1, 0, 0, 0, 0, -1);
        _mm256_maskstore_epi32((void *)(s->out + 20), mask, v);
        __m256i g = _mm256_i32gather_epi32((void *)s->data, _mm256_setr_epi32(1, 5, 9, 2, 4, 4, 8, 0), 4);
        uint32_t lanes[8];
        _mm256_storeu_si256((void *)lanes, g);
        for (int k = 0; k < 8; k++) digest = mix(digest, lanes[k]);
        digest = mix(digest, s->out[20] ^ s->out[23]);
        __m128i x = _mm_loadu_si128((void *)(s->data + 7));
        _mm_storeu_si128((void *)((char *)s->out + 201), x);
        // Bits far away, with an offset in a register.
        uint64_t bit = 64 * 17 + round % 64;
        unsigned char was;
        __asm__ volatile("lock btsq %2, %1; setc %0" : "=r"(was), "+m"(s->out[0]) : "r"(bit) : "memory", "cc");
        digest = mix(digest, was);
        __asm__ volatile("pushq %1; popq %0" : "=r"(value) : "m"(s->data[5]));
        digest = mix(digest, value);
        __asm__ volatile("pushq %1; popq %0" : "=m"(s->out[30]) : "r"(value));
        CHECK(s->out[30] == value);
        unsigned __int128 expected = s->wide, next = expected + round;
        uint64_t lo = expected, hi = expected >> 64;
        __asm__ volatile("lock cmpxchg16b %0" : "+m"(s->wide), "+a"(lo), "+d"(hi) : "b"((uint64_t)next), "c"((uint64_t)(next >> 64)) : "cc");
        CHECK(s->wide == next);
        __asm__ volatile("xchgq %0, %1" : "+r"(value), "+m"(s->out[31]));
        digest = mix(digest, value);
        double d = 3;
        __asm__ volatile("fildll %1; fistpll %2; fldl %0; fstpl %3" : : "m"(d), "m"(s->data[2]), "m"(s->out[33]), "m"(s->out[34]) : "memory", "st");
        digest = mix(digest, s->out[33]);
        __asm__ volatile("addq %1, %0; adcq $0, %0; notq %0" : "+m"(s->out[35]) : "r"(value) : "cc");
        digest = mix(digest, s->out[35]);
        __asm__ volatile("cmpq %1, %2; cmovaq %2, %0" : "+r"(value) : "r"(digest), "m"(s->data[9]) : "cc");
        digest = mix(digest, value);
        if (s->pointer) s->pointer();
        digest = mix(digest, called);
        __asm__ volatile("leaq 8+%1, %%rbx; movq $7, -8(%%rbx); movb $3, (%%rbx); xlatb" : "=a"(value) : "m"(s->out[40]), "a"(0L) : "rbx", "memory");
        digest = mix(digest, value);
        if (round % 16 == 0) sched_yield();
    }
    s->stop = 1;
    return digest;
}
static uint64_t work(int number) { return number ? changer() : user(); }
int main(int argc, char **argv) {
    par_args(argc, argv, 2, 100);
    s = share(sizeof *s);
    in_processes(2, work);
    return 0;
}
