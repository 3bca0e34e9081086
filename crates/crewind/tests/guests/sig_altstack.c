// Handlers on an alternate stack: where they run, SS_ONSTACK, SS_AUTODISARM, nesting, inheritance.
#include "check.h"
static char *base;
static const size_t size = 64 << 10;
static int on_stack(void *p) { return (char *)p >= base && (char *)p < base + size; }
static volatile int runs;
static void handler(int sig, siginfo_t *info, void *context) {
    int local;
    (void)info;
    ucontext_t *uc = context;
    CHECK(on_stack(&local));
    CHECK(on_stack(context));
    CHECK(uc->uc_stack.ss_sp == base && uc->uc_stack.ss_size == size);
    stack_t now;
    SYS(sigaltstack(0, &now));
    CHECK(now.ss_flags & SS_ONSTACK);
    FAILS(sigaltstack(&(stack_t){.ss_flags = SS_DISABLE}, 0), EPERM);
    if (++runs == 1) raise(SIGUSR2); // nested on the same stack, below this frame
    (void)sig;
}
static void plain(int sig, siginfo_t *info, void *context) {
    int local;
    (void)sig, (void)info, (void)context;
    CHECK(!on_stack(&local));
}
static void disarmed(int sig, siginfo_t *info, void *context) {
    stack_t now;
    (void)sig, (void)info, (void)context;
    SYS(sigaltstack(0, &now));
    CHECK(now.ss_flags & SS_DISABLE);
    runs++;
}
int main(void) {
    base = SYS((char *)mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    stack_t stack = {.ss_sp = base, .ss_size = size}, old;
    SYS(sigaltstack(&stack, &old));
    CHECK(old.ss_flags & SS_DISABLE);
    on_signal(SIGUSR1, handler, SA_ONSTACK);
    on_signal(SIGUSR2, handler, SA_ONSTACK);
    on_signal(SIGALRM, plain, 0);
    raise(SIGUSR1);
    CHECK(runs == 2);
    raise(SIGALRM);
    SYS(sigaltstack(0, &old));
    CHECK(old.ss_flags == 0 && old.ss_sp == base);
    pid_t pid = SYS(fork());
    if (pid == 0) {
        runs = 0;
        raise(SIGUSR1);
        _exit(runs);
    }
    print_end("child on its copy", pid);
    FAILS(sigaltstack(&(stack_t){.ss_sp = base, .ss_size = 100}, 0), ENOMEM);
    stack.ss_flags = (int)(1U << 31); // SS_AUTODISARM
    SYS(sigaltstack(&stack, 0));
    on_signal(SIGHUP, disarmed, SA_ONSTACK);
    runs = 0;
    raise(SIGHUP);
    raise(SIGHUP);
    CHECK(runs == 2);
    SYS(sigaltstack(0, &old));
    CHECK(old.ss_sp == base && !(old.ss_flags & SS_DISABLE));
    puts("alternate stacks work");
    return 0;
}
