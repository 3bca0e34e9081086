// varies
// A process that makes children is killed (SIGKILL) at any moment, also between the making of a child and its own
// knowing of it. What the children wrote was written, so a replay shows it.
#include "check.h"
#include <spawn.h>
extern char **environ;
static void make_children(int round) {
    for (int i = 0;; i++) {
        if (i % 4 == 3) {
            char text[32];
            snprintf(text, sizeof text, "spawned %d.%d", round, i);
            char *argv[] = {(char *)"echo", text, NULL};
            pid_t pid;
            CHECK(posix_spawn(&pid, "/bin/echo", NULL, NULL, argv, environ) == 0);
        } else if (fork() == 0) {
            dprintf(1, "forked %d.%d\n", round, i);
            _exit(0);
        }
        while (waitpid(-1, NULL, i % 8 == 0 ? 0 : WNOHANG) > 0) {}
    }
}
int main(void) {
    signal(SIGCHLD, SIG_DFL);
    unsigned random = (unsigned)getpid() * 2654435761u;
    for (int round = 0; round < 30; round++) {
        int alive[2];
        SYS(pipe(alive));
        pid_t maker = SYS(fork());
        if (maker == 0) {
            close(alive[0]);
            make_children(round);
        }
        close(alive[1]);
        random = random * 1103515245u + 12345u;
        usleep((random >> 16) % 8000);
        SYS(kill(maker, SIGKILL));
        int status;
        CHECK(SYS(waitpid(maker, &status, 0)) == maker && WIFSIGNALED(status));
        // Its children end by themselves.
        char c;
        CHECK(read(alive[0], &c, 1) == 0);
        close(alive[0]);
    }
    puts("all killed");
    return 0;
}
