// Handlers interrupted by other handlers, masks during handlers, and their restoration.
#include "check.h"
static char trail[256];
static int length, rounds;
static void note(char c) {
    trail[length++] = c;
    trail[length] = 0;
}
static int blocked(int sig) {
    sigset_t now;
    SYS(sigprocmask(SIG_BLOCK, 0, &now));
    return sigismember(&now, sig);
}
static void third(int sig) {
    note('[');
    note('0' + blocked(SIGUSR1) + blocked(SIGUSR2) + blocked(sig));
    note(']');
}
static void second(int sig) {
    note('(');
    CHECK(blocked(sig));
    note('0' + blocked(SIGUSR1));
    raise(SIGALRM);
    note(')');
}
static void first(int sig) {
    note('<');
    CHECK(blocked(sig) && !blocked(SIGUSR2) && blocked(SIGHUP));
    raise(SIGHUP); // waits until this handler is done
    note('.');
    raise(SIGUSR2);
    if (++rounds < 3) raise(sig); // likewise
    note('>');
}
static void hup(int sig) {
    (void)sig;
    note('h');
}
int main(void) {
    struct sigaction sa = {.sa_handler = first};
    sigaddset(&sa.sa_mask, SIGHUP);
    SYS(sigaction(SIGUSR1, &sa, 0));
    struct sigaction sb = {.sa_handler = second};
    SYS(sigaction(SIGUSR2, &sb, 0));
    struct sigaction sc = {.sa_handler = third};
    SYS(sigaction(SIGALRM, &sc, 0));
    struct sigaction sd = {.sa_handler = hup};
    SYS(sigaction(SIGHUP, &sd, 0));
    struct sigaction once = sa;
    raise(SIGUSR1);
    once.sa_handler = SIG_IGN;
    SYS(sigaction(SIGUSR1, &once, 0));
    CHECK(!blocked(SIGUSR1) && !blocked(SIGUSR2) && !blocked(SIGHUP) && !blocked(SIGALRM));
    note('|');
    SYS(sigaction(SIGUSR1, &sa, 0));
    for (int i = 0; i < 3; i++) kill(getpid(), SIGUSR2), note('-');
    return puts(trail) < 0;
}
