// A few seconds of computing, for a debugger to be interrupted in.
#include <stdio.h>
static volatile unsigned long sum;
static int never;
__attribute__((noinline)) void turn(unsigned long n) {
    for (unsigned long i = 0; i < n; i++) sum = sum * 3 + i;
}
int main(void) {
    for (int i = 0; i < 1000; i++) turn(1000 * 1000);
    printf("%lu %d\n", sum, never);
    return 0;
}
