// Alignment checking (AC in the flags), which the JVM sets to find out what processor it has: threads that set it keep it over
// system calls, emulated instructions and changes of threads, their aligned accesses to shared memory work, and one that is
// not aligned is a SIGBUS.
// varies
#include "par.h"
#include <setjmp.h>
static volatile long words[64];
static __thread sigjmp_buf back;
static __thread volatile int code;
static void on_bus(int sig, siginfo_t *info, void *context) {
    (void)sig, (void)context;
    code = info->si_code;
    siglongjmp(back, 1);
}
static inline void set_ac(void) { __asm__ volatile("pushfq; orl $0x40000, (%%rsp); popfq" ::: "memory", "cc"); }
static inline unsigned long clear_ac(void) {
    unsigned long flags;
    __asm__ volatile("pushfq; pop %0; pushfq; andl $~0x40000, (%%rsp); popfq" : "=r"(flags)::"memory", "cc");
    return flags >> 18 & 1;
}
// Aligned accesses to memory of all threads, of several sizes, with flags alive across them.
static __attribute__((noinline)) uint64_t work(int me, uint64_t seen) {
    for (int i = 0; i < 24; i++) {
        int at = (i * 5 + me) % 56;
        seen = mix(seen, (uint64_t)words[at]);
        words[at] = (long)seen;
        unsigned char carry;
        __asm__ volatile("addq %2, %1; movq (%3), %%rax; movq %%rax, 8(%3); setc %0"
                         : "=r"(carry), "+r"(seen)
                         : "r"(seen), "r"(&words[at])
                         : "rax", "memory", "cc");
        seen += carry;
        __asm__ volatile("rep movsq" : : "S"(&words[at]), "D"(&words[at + 4]), "c"(4L) : "memory");
        __atomic_fetch_add(&words[63], 1, __ATOMIC_SEQ_CST);
    }
    return seen;
}
static uint64_t body(int me) {
    uint64_t seen = 0;
    for (int round = 0; round < par_rounds; round++) {
        unsigned long a = 1, c = 0, pid = SYS_getppid;
        set_ac();
        seen = work(me, seen);
        __asm__ volatile("cpuid; rdtsc" : "+a"(a), "+c"(c)::"rbx", "rdx");
        __asm__ volatile("syscall" : "+a"(pid)::"rcx", "r11", "memory");
        seen = mix(work(me, seen), a);
        CHECK(clear_ac());
        CHECK(!clear_ac());
        if (sigsetjmp(back, 1) == 0) {
            set_ac();
            (void)*(volatile long *)((char *)words + 8 * (round % 32) + 1 + round % 7);
            clear_ac();
            CHECK(!"an unaligned access is refused");
        }
        clear_ac();
        CHECK(code == BUS_ADRALN);
        code = 0;
    }
    return seen;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 4, 300);
    struct sigaction action = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGBUS, &action, NULL);
    par_run("seen", body);
    CHECK(words[63] == 2L * 24 * par_rounds * par_threads);
    return 0;
}
