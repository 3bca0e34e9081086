// Integer instructions that compilers seldom emit, with operands and flags printed: what a translator may get wrong.
// build: -O1 -mbmi -mbmi2 -mlzcnt -mpopcnt -madx -mcx16 -mmovbe -mfsgsbase
#include "check.h"
#include <immintrin.h>
static uint64_t sum = 14695981039346656037UL;
static void note(uint64_t v) { sum = (sum ^ v) * 1099511628211UL; }
#define FLAGS_MASK 0x8d5UL
// Runs an instruction on a and b, collects results and defined flags.
#define TRY(insn, mask)                                                                                     \
    do {                                                                                                    \
        uint64_t h = 14695981039346656037UL;                                                                \
        for (unsigned i = 0; i < 12; i++)                                                                   \
            for (unsigned k = 0; k < 12; k++) {                                                             \
                uint64_t a = values[i], b = values[k], c = values[(i + k) % 12], f;                         \
                asm volatile("add $127, %%al\n" insn "\n pushf\n pop %3"                                    \
                             : "+a"(a), "+d"(b), "+c"(c), "=r"(f)::"cc", "memory");                         \
                h = (h ^ a) * 1099511628211UL;                                                              \
                h = (h ^ b) * 1099511628211UL;                                                              \
                h = (h ^ c) * 1099511628211UL;                                                              \
                h = (h ^ (f & (mask))) * 1099511628211UL;                                                   \
            }                                                                                               \
        printf("%-28s %016lx\n", insn, h);                                                                  \
        note(h);                                                                                            \
    } while (0)
static const uint64_t values[12] = {0, 1, 2, 0x7f, 0x80, 0xffff, 0x7fffffff, 0x80000000, 0x123456789abcdef0,
                                    0x7fffffffffffffff, 0x8000000000000000, 0xffffffffffffffff};
int main(void) {
    TRY("adc %%rdx, %%rax", 0x8d5);
    TRY("sbb %%edx, %%eax", 0x8d5);
    TRY("neg %%rax", 0x8d5);
    TRY("imul %%rdx", 0x801);
    TRY("mul %%edx", 0x801);
    TRY("imul $77, %%rdx, %%rax", 0x801);
    TRY("or $1, %%rcx; xor %%edx, %%edx; div %%rcx", 0);
    TRY("or $1, %%ecx; mov $0, %%edx; div %%ecx", 0);
    TRY("shld $5, %%rdx, %%rax", 0xc5);
    TRY("shrd %%cl, %%rdx, %%rax", 0);
    TRY("rcl $3, %%rax", 1);
    TRY("rcr $9, %%edx", 1);
    TRY("rol $1, %%ax", 0x801);
    TRY("sar %%cl, %%rax", 0);
    TRY("bt %%rdx, %%rax", 1);
    TRY("btc $13, %%rax", 1);
    TRY("bts %%edx, %%eax", 1);
    TRY("bswap %%rax", 0x8d5);
    TRY("xchg %%al, %%ah", 0x8d5);
    TRY("movsbq %%dl, %%rax", 0x8d5);
    TRY("cbw; cwde; cdqe", 0x8d5);
    TRY("cqo", 0x8d5);
    TRY("lahf; sahf", 0xd5);
    TRY("setg %%al; setb %%dl", 0x8d5);
    TRY("cmovs %%rdx, %%rax; cmovo %%ecx, %%edx", 0x8d5);
    TRY("xadd %%rdx, %%rax", 0x8d5);
    TRY("cmpxchg %%rdx, %%rcx", 0x8d5);
    TRY("popcnt %%rdx, %%rax", 0x8d5);
    TRY("lzcnt %%rdx, %%rax", 0x41);
    TRY("tzcnt %%edx, %%eax", 0x41);
    TRY("or $1, %%rdx; bsf %%rdx, %%rax", 0x40);
    TRY("andn %%rdx, %%rcx, %%rax", 0x8c1);
    TRY("blsr %%rdx, %%rax", 0x8c1);
    TRY("pdep %%rdx, %%rcx, %%rax", 0x8d5);
    TRY("pext %%rdx, %%rcx, %%rax", 0x8d5);
    TRY("mulx %%rcx, %%rax, %%rcx", 0x8d5);
    TRY("rorx $13, %%rdx, %%rax", 0x8d5);
    TRY("shlx %%rcx, %%rdx, %%rax", 0x8d5);
    TRY("adcx %%rdx, %%rax; adox %%rcx, %%rax", 0x8d5);
    TRY("crc32q %%rdx, %%rax", 0x8d5);
    TRY("stc; cmc; clc; cmc", 1);
    TRY("jrcxz 1f; inc %%rax; 1: dec %%rdx", 0x8d4);
    TRY("and $7, %%ecx; inc %%ecx; 1: add %%rcx, %%rax; loop 1b", 0);
    TRY("and $7, %%ecx; inc %%ecx; 1: add %%rcx, %%rax; cmp $1000, %%rax; loopne 1b", 0);
    TRY("push %%rax; pushw %%dx; popw %%cx; pop %%rdx", 0x8d5);
    TRY("enter $32, $0; mov %%rdx, -8(%%rbp); mov -8(%%rbp), %%rcx; leave", 0x8d5);
    TRY("enter $16, $2; leave", 0x8d5);
    // Strings, both directions, overlapping, with repeats of zero.
    static unsigned char area[4096];
    for (unsigned i = 0; i < sizeof area; i++) area[i] = (unsigned char)(i * 37 + i / 256);
    void *s = area + 100, *d = area + 103;
    size_t n = 500;
    asm volatile("rep movsb" : "+S"(s), "+D"(d), "+c"(n)::"memory");
    s = area + 3000, d = area + 3001, n = 400;
    asm volatile("std\n rep movsw\n cld" : "+S"(s), "+D"(d), "+c"(n)::"memory");
    n = 0;
    asm volatile("rep movsq" : "+S"(s), "+D"(d), "+c"(n)::"memory");
    d = area + 2000, n = 50;
    asm volatile("rep stosl" : "+D"(d), "+c"(n) : "a"(0x11223344) : "memory");
    d = area, n = 4096;
    asm volatile("repne scasb" : "+D"(d), "+c"(n) : "a"(0x44) : "memory", "cc");
    note((uint64_t)((unsigned char *)d - area));
    s = area, d = area + 256, n = 256;
    asm volatile("repe cmpsb" : "+S"(s), "+D"(d), "+c"(n)::"memory", "cc");
    note(n);
    uint64_t acc = 0;
    s = area;
    asm volatile("lodsq\n lodsl\n lodsb" : "+S"(s), "+a"(acc)::"memory");
    note(acc);
    note(hash_bytes(area, sizeof area));
    unsigned char table[256], index = 77;
    for (int i = 0; i < 256; i++) table[i] = (unsigned char)(255 - i);
    asm volatile("xlatb" : "+a"(index) : "b"(table) : "memory");
    note(index);
    // 16-byte compare and exchange, and a 4 GiB-relative addressing mode.
    static struct {
        uint64_t lo, hi;
    } pair __attribute__((aligned(16))) = {1, 2};
    uint64_t lo = 1, hi = 2;
    unsigned char equal;
    asm volatile("lock cmpxchg16b %0\n setz %3" : "+m"(pair), "+a"(lo), "+d"(hi), "=r"(equal) : "b"(5UL), "c"(6UL) : "cc");
    note(pair.lo * 10 + pair.hi + equal);
    uint32_t word = 0x01020304;
    uint64_t got;
    asm volatile("movbe %1, %k0" : "=r"(got) : "m"(word));
    note(got);
    asm volatile("mov %%rsp, %%rax\n lea -64(%%rsp), %%rsp\n push %%rsp\n pop %%rcx\n sub %%rsp, %%rcx\n mov %%rax, %%rsp" : "=c"(got)::"rax", "memory");
    note(got);
    printf("%016lx\n", sum);
    return 0;
}
