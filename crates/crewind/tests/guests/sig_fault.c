// Faults of the program's own instructions: siginfo and every register in the context exact, and the handler's
// changes to the context take effect.
// build: -O0 -mno-red-zone
#include "check.h"
static volatile siginfo_t info_seen;
static gregset_t regs_seen;
static volatile uintptr_t resume_at, set_rax;
static void handler(int sig, siginfo_t *info, void *context) {
    ucontext_t *uc = context;
    (void)sig;
    info_seen = *info;
    memcpy(regs_seen, uc->uc_mcontext.gregs, sizeof regs_seen);
    uc->uc_mcontext.gregs[REG_RIP] = resume_at;
    if (set_rax) uc->uc_mcontext.gregs[REG_RAX] = set_rax;
}
// Runs one faulting instruction with known registers; prints what the handler saw.
#define FAULT(name, insn)                                                                        \
    do {                                                                                         \
        memset((void *)&info_seen, 0, sizeof info_seen);                                                 \
        uintptr_t at, out = 0;                                                                   \
        asm volatile("lea 2f(%%rip), %%rax\n mov %%rax, %[resume]\n"                             \
                     "lea 1f(%%rip), %%rax\n mov %%rax, %[at]\n"                                 \
                     "mov %[addr], %%rax\n mov $0x22, %%ebx\n mov $0x33, %%ecx\n"                \
                     "mov $0x44, %%edx\n mov $0x55, %%esi\n mov $0x66, %%edi\n"                  \
                     "mov $0x88, %%r8d\n mov $0x99, %%r9d\n mov $0xaa, %%r10d\n"                 \
                     "mov $0xbb, %%r11d\n mov $0xcc, %%r12d\n mov $0xdd, %%r13d\n"               \
                     "mov $0xee, %%r14d\n mov $0xff, %%r15d\n stc\n"                             \
                     "1: " insn "\n 2: mov %%rax, %[out]\n"                                      \
                     : [resume] "=m"(resume_at), [at] "=m"(at), [out] "=m"(out)                  \
                     : [addr] "m"(address)                                                       \
                     : "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11",       \
                       "r12", "r13", "r14", "r15", "memory", "cc");                              \
        print(name, at, out);                                                                    \
    } while (0)
static uintptr_t address;
static void print(const char *name, uintptr_t at, uintptr_t out) {
    printf("%s: signal %d code %d", name, info_seen.si_signo, info_seen.si_code);
    uintptr_t a = (uintptr_t)info_seen.si_addr;
    printf(" addr %s", a == 0 ? "0" : a == at ? "pc" : a == address ? "operand" : "other");
    printf(" rip %+ld", (long)(regs_seen[REG_RIP] - at));
    printf(" regs %llx %llx %llx %llx %llx %llx %llx %llx %llx %llx %llx %llx %llx cf %lld out %lx\n", regs_seen[REG_RBX],
           regs_seen[REG_RCX], regs_seen[REG_RDX], regs_seen[REG_RSI], regs_seen[REG_RDI], regs_seen[REG_R8],
           regs_seen[REG_R9], regs_seen[REG_R10], regs_seen[REG_R11], regs_seen[REG_R12], regs_seen[REG_R13],
           regs_seen[REG_R14], regs_seen[REG_R15], regs_seen[REG_EFL] & 1, set_rax ? out : 0);
}
int main(void) {
    static char stack[65536];
    SYS(sigaltstack(&(stack_t){.ss_sp = stack, .ss_size = sizeof stack}, 0));
    for (int sig = SIGILL; sig <= SIGSEGV; sig++)
        if (sig == SIGILL || sig == SIGTRAP || sig == SIGBUS || sig == SIGFPE || sig == SIGSEGV)
            on_signal(sig, handler, SA_ONSTACK);
    address = 0x1000;
    FAULT("load", "mov (%%rax), %%rdx");
    FAULT("store", "movq $1, (%%rax)");
    FAULT("read-modify-write", "addl $3, (%%rax)");
    FAULT("vector load", "movups (%%rax), %%xmm1");
    FAULT("push", "xchg %%rax, %%rsp\n push %%rbx\n 2: xchg %%rax, %%rsp\n jmp 3f\n 3: nop\n");
    address = 0x8000000000000000;
    FAULT("non-canonical", "mov (%%rax), %%rdx");
    char *ro = SYS((char *)mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    address = (uintptr_t)ro;
    FAULT("read-only", "movb $1, (%%rax)");
    address = (uintptr_t)(ro + 4);
    FAULT("locked", "lock incl (%%rax)");
    int fd = SYS(memfd_create("short", 0));
    SYS(ftruncate(fd, 4096));
    char *two = SYS((char *)mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    address = (uintptr_t)(two + 4096);
    FAULT("past the end of a file", "mov (%%rax), %%edx");
    address = 0;
    FAULT("divide by zero", "mov $0, %%ecx\n 1: div %%ecx");
    FAULT("ud2", "ud2");
    FAULT("int3", "int3");
    FAULT("hlt", "hlt");
    FAULT("in", "in $0x80, %%al");
    FAULT("cli", "cli");
    FAULT("rdmsr", "rdmsr");
    FAULT("invalid", ".byte 0x06");
    FAULT("int 5", "int $5");
    address = (uintptr_t)(ro + 8);
    set_rax = 0x1234;
    FAULT("handler sets rax", "movb $1, (%%rax)");
    set_rax = 0;
    // A jump to a page that is not executable, and to nothing: the pc is the target.
    for (int i = 0; i < 2; i++) {
        address = i ? (uintptr_t)ro : 0x2000;
        memset((void *)&info_seen, 0, sizeof info_seen);
        asm volatile("lea 1f(%%rip), %%rax\n mov %%rax, %0\n mov %1, %%rax\n call *%%rax\n 1:\n lea 8(%%rsp), %%rsp\n"
                     : "=m"(resume_at)
                     : "m"(address)
                     : "rax", "memory");
        printf("jump: signal %d code %d addr %d rip %d\n", info_seen.si_signo, info_seen.si_code,
               (uintptr_t)info_seen.si_addr == address, (uintptr_t)regs_seen[REG_RIP] == address);
    }
    return 0;
}
