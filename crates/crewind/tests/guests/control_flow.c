// Transfers of all kinds: switch tables, function pointers, virtual-like calls, deep and mutual recursion, tail
// calls, ret with an operand, calls that pop their return address, jumps into the middle of instructions.
// build: -O2 -fno-inline
#include "check.h"
static uint64_t sum = 1;
static void mix(uint64_t v) { sum = (sum * 31) ^ v; }
static int dispatch(int op, int a) {
    switch (op) {
    case 0: return a + 1;
    case 1: return a * 3;
    case 2: return a ^ 0x55;
    case 3: return a >> 1;
    case 4: return -a;
    case 5: return a << 3;
    case 6: return a & 0xffff;
    case 7: return a | 1;
    case 8: return a % 17;
    case 9: return a / 3;
    default: return 0;
    }
}
static int even(unsigned n);
static int odd(unsigned n) { return n == 0 ? 0 : even(n - 1); }
static int even(unsigned n) { return n == 0 ? 1 : odd(n - 1); }
static uint64_t ackermann(uint64_t m, uint64_t n) {
    return m == 0 ? n + 1 : n == 0 ? ackermann(m - 1, 1) : ackermann(m - 1, ackermann(m, n - 1));
}
static int fib(int n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }
static int depth(int n) { return n == 0 ? 0 : 1 + depth(n - 1) * (n % 2 ? 1 : 1); }
asm(".text\n"
    "popper: pop %rax\n lea 1(%rdi), %rdi\n xchg %rdi, %rax\n jmp *%rdi\n"
    "ret_n: mov 8(%rsp), %rax\n ret $8\n"
    "overlapped: xor %eax, %eax\n jmp 2f\n 1: .byte 0xb8\n 2: inc %eax\n nop\n nop\n nop\n cmp $1, %eax\n jne 3f\n xor %ecx, %ecx\n 3: ret\n"
    "push_ret: lea 1f(%rip), %rax\n push %rax\n ret\n 1: mov $77, %eax\n ret\n"
    "thunk: call 1f\n 1: pop %rax\n lea 1b(%rip), %rcx\n sub %rcx, %rax\n ret\n"
    "two_calls: xor %eax, %eax\n call 1f\n call 1f\n ret\n 1: inc %eax\n ret\n"
    "flags_through: cmp $5, %edi\n call 1f\n setb %al\n movzx %al, %eax\n ret\n 1: ret\n"
    "flags_through_jump: cmp $5, %edi\n lea 1f(%rip), %rax\n jmp *%rax\n 1: setb %al\n movzx %al, %eax\n ret\n"
    "loop_with_carry: xor %eax, %eax\n mov $64, %ecx\n 1: rcl $1, %rdi\n adc $0, %eax\n dec %ecx\n jnz 1b\n ret\n");
extern uint64_t popper(uint64_t), overlapped(void), push_ret(void), thunk(void), two_calls(void);
extern int flags_through(int), flags_through_jump(int), loop_with_carry(uint64_t);
int main(void) {
    uint64_t state = 7;
    int value = 1;
    for (int i = 0; i < 200000; i++) {
        value = dispatch((int)(next_random(&state) % 11), value);
        if ((i & 1023) == 0) mix((uint64_t)value);
    }
    int (*table[2])(unsigned) = {even, odd};
    for (unsigned i = 0; i < 3000; i++) mix((uint64_t)table[i & 1](i));
    mix(ackermann(2, 300));
    mix((uint64_t)fib(24));
    mix((uint64_t)depth(50000));
    for (int i = 0; i < 1000; i++) {
        mix(popper((uint64_t)i));
        mix(push_ret());
        mix(thunk());
        mix(two_calls());
        mix((uint64_t)flags_through(i % 10) * 2 + (uint64_t)flags_through_jump(i % 10));
    }
    uint64_t out;
    asm volatile("push $1234\n call ret_n\n mov %%rax, %0" : "=r"(out)::"rax", "memory");
    mix(out);
    mix(overlapped() & 0xff);
    mix((uint64_t)loop_with_carry(0xf0f0f0f0f0f0f0f0));
    printf("%016lx\n", sum);
    return 0;
}
