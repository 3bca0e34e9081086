// Deep recursion, huge alloca, stack limits, a thread of execution on a mapped stack, stack growth by big steps.
// build: -O0
#include "check.h"
#include <alloca.h>
static uint64_t recurse(int n, uint64_t x) {
    volatile char frame[200];
    frame[n % 200] = (char)x;
    return n == 0 ? x : recurse(n - 1, x * 31 + (uint64_t)n) + (uint64_t)frame[n % 200] * 0;
}
static int huge(size_t n) {
    volatile char *p = alloca(n);
    for (size_t i = 0; i < n; i += 4096) p[n - 1 - i] = 1;
    p[0] = 2;
    return p[0] + p[n - 1];
}
int main(void) {
    printf("%016lx\n", recurse(20000, 1));
    printf("%d\n", huge(5 << 20));
    struct rlimit limit;
    SYS(getrlimit(RLIMIT_STACK, &limit));
    printf("limit of 8 MiB or more: %d\n", limit.rlim_cur >= 8 << 20);
    char *low = SYS((char *)mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0));
    uint64_t result;
    asm volatile("mov %%rsp, %%rbx\n mov %1, %%rsp\n call recurse_500\n mov %%rbx, %%rsp\n mov %%rax, %0"
                 : "=r"(result)
                 : "r"(low + (1 << 20) - 64)
                 : "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory");
    printf("%016lx\n", result);
    // In a child a limit that is hit is a SIGSEGV.
    fflush(stdout);
    pid_t pid = SYS(fork());
    if (pid == 0) {
        setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
        _exit((int)recurse(10000000, 1) & 1);
    }
    print_end("endless recursion", pid);
    return 0;
}
uint64_t recurse_500(void) { return recurse(500, 7); }
