// wait, waitpid, waitid, wait4: zombies, WNOHANG, WNOWAIT, groups, rusage, ignored SIGCHLD, pidfd.
#include "check.h"
#include <poll.h>
static pid_t child(int status, int ms) {
    pid_t pid = SYS(fork());
    if (pid == 0) {
        if (ms) sleep_ms(ms);
        _exit(status);
    }
    return pid;
}
int main(void) {
    int status;
    FAILS(wait(&status), ECHILD);
    pid_t a = child(1, 0), b = child(2, 30);
    siginfo_t info = {0};
    SYS(waitid(P_PID, (id_t)a, &info, WEXITED | WNOWAIT));
    CHECK(info.si_pid == a && info.si_status == 1 && info.si_code == CLD_EXITED);
    CHECK(waitpid(b, &status, WNOHANG) == 0);
    CHECK(kill(a, 0) == 0); // still a zombie
    CHECK(waitpid(a, &status, 0) == a && WEXITSTATUS(status) == 1);
    FAILS(kill(a, 0), ESRCH);
    struct rusage usage;
    CHECK(wait4(b, &status, 0, &usage) == b && WEXITSTATUS(status) == 2);
    CHECK(usage.ru_maxrss > 0);
    FAILS(waitpid(b, &status, 0), ECHILD);
    pid_t pids[5];
    for (int i = 0; i < 5; i++) pids[i] = child(10 + i, 0);
    int sum = 0;
    for (int i = 0; i < 5; i++) {
        pid_t pid = wait(&status);
        for (int k = 0; k < 5; k++)
            if (pids[k] == pid && WEXITSTATUS(status) == 10 + k) sum += 1 << k;
    }
    printf("all five: %d\n", sum);
    pid_t g = child(7, 20);
    SYS(setpgid(g, g));
    CHECK(waitpid(-g, &status, 0) == g && WEXITSTATUS(status) == 7);
    signal(SIGCHLD, SIG_IGN);
    child(3, 5);
    child(4, 10);
    FAILS(wait(&status), ECHILD); // waits for all, then nothing is left
    signal(SIGCHLD, SIG_DFL);
    a = child(21, 20);
    int fd = (int)SYS(syscall(SYS_pidfd_open, a, 0));
    struct pollfd pfd = {.fd = fd, .events = POLLIN};
    CHECK(poll(&pfd, 1, 5000) == 1);
    SYS(waitid(3 /* P_PIDFD */, (id_t)fd, &info, WEXITED));
    CHECK(info.si_pid == a && info.si_status == 21);
    b = child(0, 5000);
    fd = (int)SYS(syscall(SYS_pidfd_open, b, 0));
    SYS((int)syscall(SYS_pidfd_send_signal, fd, SIGTERM, 0, 0));
    CHECK(waitpid(b, &status, 0) == b && WTERMSIG(status) == SIGTERM);
    FAILS(waitid(P_PID, 1, &info, 0), EINVAL);
    struct rusage children;
    SYS(getrusage(RUSAGE_CHILDREN, &children));
    CHECK(children.ru_maxrss > 0);
    puts("waiting works");
    return 0;
}
