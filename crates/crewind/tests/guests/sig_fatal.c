// How children die: by signals sent, by faults, by abort; and which signals do nothing by default.
#include "check.h"
static void in_child(const char *what, void (*body)(int), int arg) {
    fflush(stdout);
    pid_t pid = SYS(fork());
    if (pid == 0) {
        setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
        body(arg);
        _exit(77);
    }
    char text[64];
    snprintf(text, sizeof text, "%s %d", what, arg);
    print_end(text, pid);
}
static void raises(int sig) { raise(sig); }
static void kills(int sig) { kill(getpid(), sig); }
static volatile int zero;
static void divides(int n) { zero = n / zero; }
static void derefs(int n) { *(volatile int *)(uintptr_t)n = 1; }
static void aborts(int n) {
    (void)n;
    abort();
}
static void traps(int n) {
    (void)n;
    asm volatile("ud2");
}
static void int3s(int n) {
    (void)n;
    asm volatile("int3");
}
static void ignored_fault(int n) {
    signal(SIGSEGV, SIG_IGN);
    derefs(n);
}
static void blocked_fault(int n) {
    sigset_t set;
    sigfillset(&set);
    sigprocmask(SIG_BLOCK, &set, 0);
    derefs(n);
}
static void ignored_abort(int n) {
    signal(SIGABRT, SIG_IGN);
    aborts(n);
}
static void in_handler(int sig) {
    (void)sig;
    *(volatile int *)8 = 1;
}
static void fault_in_handler(int n) {
    signal(SIGUSR1, in_handler);
    raise(SIGUSR1);
    (void)n;
}
int main(void) {
    for (int sig = 1; sig <= 31; sig++)
        if (sig != SIGSTOP && sig != SIGTSTP && sig != SIGTTIN && sig != SIGTTOU) in_child("raise", raises, sig);
    in_child("kill", kills, SIGKILL);
    in_child("kill", kills, SIGRTMIN + 5);
    in_child("divide", divides, 5);
    in_child("store", derefs, 16);
    in_child("abort", aborts, 0);
    in_child("ud2", traps, 0);
    in_child("int3", int3s, 0);
    in_child("fault while ignored", ignored_fault, 16);
    in_child("fault while blocked", blocked_fault, 16);
    in_child("abort while ignored", ignored_abort, 0);
    in_child("fault in a handler", fault_in_handler, 0);
    return 0;
}
