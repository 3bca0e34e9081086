// getcontext, makecontext, swapcontext: two generators and a consumer, on stacks of their own.
#include "check.h"
static ucontext_t main_context, generators[2];
static long value;
static int active;
static void squares(int start) {
    for (long i = start;; i++) {
        value = i * i;
        swapcontext(&generators[0], &main_context);
    }
}
static void fibonacci(void) {
    long a = 0, b = 1;
    for (;;) {
        value = a;
        long next = a + b;
        a = b;
        b = next;
        swapcontext(&generators[1], &main_context);
    }
}
int main(void) {
    for (int i = 0; i < 2; i++) {
        SYS(getcontext(&generators[i]));
        generators[i].uc_stack.ss_size = 64 << 10;
        generators[i].uc_stack.ss_sp = malloc(64 << 10);
        generators[i].uc_link = &main_context;
    }
    makecontext(&generators[0], (void (*)(void))squares, 1, 3);
    makecontext(&generators[1], fibonacci, 0);
    uint64_t sum = 0;
    for (int round = 0; round < 20000; round++) {
        active = (round * 7) % 3 == 0;
        SYS(swapcontext(&main_context, &generators[active]));
        sum = sum * 31 + (uint64_t)value;
        if (round < 6) printf("%ld ", value);
    }
    printf("\n%016lx\n", sum);
    return 0;
}
