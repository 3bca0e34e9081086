// exit: 7
// A daemon that was started by root gives its rights up, goes on for long, and executes programs, which execute others.
// (Started by somebody else, it only does the rest.)
#include "check.h"
#include <grp.h>
static void log_much(void) {
    static char block[1 << 20];
    int zero = SYS(open("/dev/zero", O_RDONLY));
    for (int i = 0; i < 20; i++) CHECK(read(zero, block, sizeof block) == sizeof block);
    for (int i = 0; i < 30000; i++) CHECK(syscall(SYS_getppid) >= 0);
    close(zero);
}
int main(int argc, char **argv) {
    if (argc > 1) {
        log_much();
        printf("executed: %s\n", argv[1]);
        return 7;
    }
    log_much();
    if (geteuid() == 0) {
        SYS(setgroups(0, NULL));
        SYS(setresgid(65534, 65534, 65534));
        SYS(setresuid(65534, 65534, 65534));
        FAILS(setuid(0), EPERM);
    }
    log_much();
    puts("rights given up");
    fflush(stdout);
    for (int i = 0; i < 2; i++) {
        pid_t child = SYS(fork());
        if (child == 0) {
            log_much();
            if (i == 0) execl("/proc/self/exe", "again", "itself", NULL);
            execl("/bin/sh", "sh", "-c", "echo a shell, 3 | tr 3 4; cat /etc/hostname > /dev/null; exit 5", NULL);
            _exit(98);
        }
        int status;
        SYS(waitpid(child, &status, 0));
        printf("ended with %d\n", WEXITSTATUS(status));
        fflush(stdout);
    }
    execl("/proc/self/exe", "again", "in its place", NULL);
    return 97;
}
