// SIGSTOP, SIGTSTP, SIGCONT of children, seen through wait and SIGCHLD; SIGPIPE of a writer.
#include "check.h"
static volatile int continued;
static void on_cont(int sig) {
    (void)sig;
    continued = 1;
}
int main(void) {
    for (int i = 0; i < 2; i++) {
        pid_t pid = SYS(fork());
        if (pid == 0) {
            signal(SIGCONT, on_cont);
            setpgid(0, 0);
            raise(i ? SIGSTOP : SIGTTIN);
            _exit(40 + continued);
        }
        int status;
        CHECK(waitpid(pid, &status, WUNTRACED) == pid);
        printf("stopped %d by %d\n", WIFSTOPPED(status), WSTOPSIG(status));
        SYS(kill(pid, SIGCONT));
        siginfo_t info = {0};
        SYS(waitid(P_PID, (id_t)pid, &info, WCONTINUED | WEXITED | WNOWAIT));
        CHECK(info.si_code == CLD_CONTINUED || info.si_code == CLD_EXITED);
        fflush(stdout);
        print_end("after SIGCONT", pid);
    }
    int fds[2];
    SYS(pipe(fds));
    close(fds[0]);
    fflush(stdout);
    pid_t pid = SYS(fork());
    if (pid == 0) {
        CHECK(write(fds[1], "x", 1) == -1);
        _exit(1);
    }
    print_end("writer", pid);
    signal(SIGPIPE, SIG_IGN);
    FAILS(write(fds[1], "x", 1), EPIPE);
    return 0;
}
