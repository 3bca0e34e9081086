// A small JIT that never has a page writable and executable at once: emits, protects, runs, reuses the same
// addresses; also through two mappings of one memfd, and by unmapping and mapping anew.
#include "check.h"
typedef uint64_t (*function)(uint64_t, uint64_t);
static unsigned char *at;
static void emit(const void *bytes, size_t n) {
    memcpy(at, bytes, n);
    at += n;
}
#define EMIT(...)                                    \
    do {                                             \
        unsigned char b[] = {__VA_ARGS__};           \
        emit(b, sizeof b);                           \
    } while (0)
// Emits a function of `n` random operations on rax, from (rdi, rsi); returns what it must compute.
static uint64_t generate(uint64_t seed, int n, uint64_t x, uint64_t y) {
    uint64_t a = x;
    EMIT(0x48, 0x89, 0xf8); // mov %rdi, %rax
    for (int i = 0; i < n; i++) {
        unsigned char imm = (unsigned char)(next_random(&seed) & 0x3f);
        switch (next_random(&seed) % 5) {
        case 0: EMIT(0x48, 0x83, 0xc0, imm); a += imm; break;           // add $imm, %rax
        case 1: EMIT(0x48, 0x31, 0xf0); a ^= y; break;                  // xor %rsi, %rax
        case 2: EMIT(0x48, 0xc1, 0xc0, imm); a = imm ? a << imm | a >> (64 - imm) : a; break; // rol
        case 3: EMIT(0x48, 0x0f, 0xaf, 0xc6); a *= y; break;            // imul %rsi, %rax
        case 4: EMIT(0x48, 0x85, 0xc0, 0x79, 0x03, 0x48, 0xf7, 0xd0);   // test; jns +3; not
            if ((int64_t)a < 0) a = ~a;
            break;
        }
    }
    EMIT(0xc3);
    return a;
}
int main(void) {
    size_t size = 16384;
    unsigned char *code = SYS((unsigned char *)mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    uint64_t sum = 0;
    for (uint64_t round = 1; round <= 200; round++) {
        SYS(mprotect(code, size, PROT_READ | PROT_WRITE));
        at = code;
        uint64_t want = generate(round * 77777, 300, round, round * 3 + 1);
        SYS(mprotect(code, size, PROT_READ | PROT_EXEC));
        uint64_t got = ((function)(void *)code)(round, round * 3 + 1);
        CHECK(got == want);
        sum = sum * 31 + got;
    }
    printf("protect: %016lx\n", sum);
    int fd = SYS(memfd_create("code", 0));
    SYS(ftruncate(fd, (off_t)size));
    unsigned char *w = SYS((unsigned char *)mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    unsigned char *x = SYS((unsigned char *)mmap(0, size, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0));
    for (uint64_t round = 1; round <= 100; round++) {
        at = w;
        uint64_t want = generate(round * 991, 200, round, 5);
        CHECK(((function)(void *)x)(round, 5) == want);
        sum = sum * 31 + want;
    }
    printf("two mappings: %016lx\n", sum);
    for (uint64_t round = 1; round <= 50; round++) {
        unsigned char *fresh = SYS((unsigned char *)mmap(code, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
        at = fresh;
        uint64_t want = generate(round * 13, 100, round, 9);
        SYS(mprotect(fresh, size, PROT_EXEC | PROT_READ));
        CHECK(((function)(void *)fresh)(round, 9) == want);
        SYS(munmap(fresh, size));
        sum = sum * 31 + want;
    }
    printf("mapped anew: %016lx\n", sum);
    return 0;
}
