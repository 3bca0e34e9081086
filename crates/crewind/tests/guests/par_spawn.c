// Processes started by several threads at once, by posix_spawn, vfork and popen, while another thread writes memory: exit
// statuses and what children wrote come back to the right thread.
// varies
#include "par.h"
#include <spawn.h>
extern char **environ;
static volatile long racy;
static _Atomic int left;
static uint64_t body(int me) {
    uint64_t seen = (uint64_t)me;
    if (me == par_threads - 1 && me > 0) {
        while (left) racy++;
        return 0;
    }
    for (int i = 0; i < par_rounds; i++) {
        char script[64];
        sprintf(script, "echo %d.%d; exit %d", me, i, (me * 16 + i) % 100);
        int status, fds[2];
        SYS(pipe2(fds, O_CLOEXEC));
        pid_t pid;
        if (i % 2) {
            posix_spawn_file_actions_t actions;
            posix_spawn_file_actions_init(&actions);
            posix_spawn_file_actions_adddup2(&actions, fds[1], 1);
            char *words[] = {"sh", "-c", script, 0};
            CHECK(posix_spawn(&pid, "/bin/sh", &actions, 0, words, environ) == 0);
            posix_spawn_file_actions_destroy(&actions);
        } else {
            pid = SYS(vfork());
            if (pid == 0) {
                dup2(fds[1], 1);
                execl("/bin/sh", "sh", "-c", script, (char *)0);
                _exit(98);
            }
        }
        close(fds[1]);
        char text[64];
        ssize_t n = 0, m;
        while ((m = SYS(read(fds[0], text + n, sizeof text - (size_t)n))) > 0) n += m;
        close(fds[0]);
        CHECK(waitpid(pid, &status, 0) == pid);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == (me * 16 + i) % 100);
        int a, b;
        text[n] = 0;
        CHECK(sscanf(text, "%d.%d", &a, &b) == 2 && a == me && b == i);
        seen = mix(seen, (uint64_t)pid + (uint64_t)racy++);
    }
    left--;
    return seen;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 3, 4);
    left = par_threads > 1 ? par_threads - 1 : 1;
    par_run("seen", body);
    return 0;
}
