// Children killed by SIGKILL while they compute, sleep, or are just starting: a replay must not wait for them.
#include "check.h"
int main(void) {
    int p[2];
    SYS(pipe(p));
    for (int kind = 0; kind < 3; kind++) {
        pid_t pid = SYS(fork());
        if (pid == 0) {
            CHECK(write(p[1], "r", 1) == 1);
            volatile uint64_t n = 0;
            if (kind == 0)
                for (;;) n++;
            if (kind == 1)
                for (;;) pause();
            execl("/bin/sleep", "sleep", "100", (char *)0);
            _exit(98);
        }
        char c;
        CHECK(read(p[0], &c, 1) == 1);
        if (kind < 2) sleep_ms(5);
        SYS(kill(pid, SIGKILL));
        print_end("killed", pid);
    }
    return 0;
}
