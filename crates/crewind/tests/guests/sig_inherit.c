// Masks, ignored and caught signals, and pending ones over fork and exec.
// args: parent
#include "check.h"
static void handler(int sig) { (void)sig; }
static const char *disposition(int sig) {
    struct sigaction sa;
    SYS(sigaction(sig, 0, &sa));
    return sa.sa_handler == SIG_DFL ? "default" : sa.sa_handler == SIG_IGN ? "ignored" : "caught";
}
static void print(const char *who) {
    sigset_t mask, pending;
    SYS(sigprocmask(SIG_BLOCK, 0, &mask));
    SYS(sigpending(&pending));
    printf("%s: usr1 %s, usr2 %s, hup %s; blocked %d%d%d; pending %d%d\n", who, disposition(SIGUSR1), disposition(SIGUSR2),
           disposition(SIGHUP), sigismember(&mask, SIGUSR1), sigismember(&mask, SIGTERM), sigismember(&mask, SIGINT),
           sigismember(&pending, SIGTERM), sigismember(&pending, SIGINT));
    fflush(stdout);
}
int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "parent") != 0) {
        print(argv[1]);
        return 0;
    }
    signal(SIGUSR1, handler);
    signal(SIGUSR2, SIG_IGN);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    SYS(sigprocmask(SIG_BLOCK, &set, 0));
    raise(SIGTERM);
    print("parent");
    pid_t pid = SYS(fork());
    if (pid == 0) {
        print("forked"); // pending signals are not inherited
        raise(SIGINT);
        execl("/proc/self/exe", argv[0], "executed", (char *)0); // but survive exec
        _exit(98);
    }
    print_end("child", pid);
    print("parent");
    execl("/proc/self/exe", argv[0], "executed in place", (char *)0);
    return 98;
}
