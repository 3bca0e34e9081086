// vfork, posix_spawn and system: success, file actions, attributes, and failures that must come back as errno.
#include "check.h"
#include <spawn.h>
extern char **environ;
int main(void) {
    volatile int shared = 1;
    pid_t pid = vfork();
    if (pid == 0) {
        shared = 2; // visible to the parent: vfork shares memory
        _exit(9);
    }
    print_end("vfork", pid);
    CHECK(shared == 2);
    pid = vfork();
    if (pid == 0) {
        execl("/bin/echo", "echo", "executed after vfork", (char *)0);
        _exit(98);
    }
    print_end("vfork and exec", pid);
    volatile int failed = 0;
    pid = vfork();
    if (pid == 0) {
        execl("/no/such/file", "x", (char *)0);
        failed = errno;
        _exit(4);
    }
    print_end("vfork and failing exec", pid);
    printf("errno seen by the parent: %s\n", strerror(failed));
    fflush(stdout);
    char *argv[] = {"sh", "-c", "echo spawned $VAR; cat; exit 6", 0};
    char *envp[] = {"VAR=value", "PATH=/bin:/usr/bin", 0};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    int fds[2];
    SYS(pipe(fds));
    CHECK(write(fds[1], "through stdin\n", 14) == 14);
    posix_spawn_file_actions_adddup2(&actions, fds[0], 0);
    posix_spawn_file_actions_addclose(&actions, fds[1]);
    posix_spawnattr_t attr;
    posix_spawnattr_init(&attr);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    posix_spawnattr_setsigdefault(&attr, &set);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
    CHECK(posix_spawn(&pid, "/bin/sh", &actions, &attr, argv, envp) == 0);
    close(fds[1]);
    print_end("posix_spawn", pid);
    CHECK(posix_spawn(&pid, "/no/such/program", 0, 0, argv, envp) == ENOENT);
    CHECK(posix_spawn(&pid, "/etc/passwd", 0, 0, argv, envp) == EACCES);
    CHECK(posix_spawnp(&pid, "no-such-program-in-path", 0, 0, argv, environ) == ENOENT);
    posix_spawn_file_actions_addopen(&actions, 5, "/no/such/file", O_RDONLY, 0);
    CHECK(posix_spawn(&pid, "/bin/sh", &actions, 0, argv, envp) == ENOENT);
    CHECK(waitpid(-1, 0, 0) == -1 && errno == ECHILD);
    for (int i = 0; i < 30; i++) {
        char *true_argv[] = {"true", 0};
        CHECK(posix_spawn(&pid, "/bin/true", 0, 0, true_argv, envp) == 0);
        int status;
        CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    }
    printf("system: %d\n", WEXITSTATUS(system("echo from system; exit 3")));
    FILE *f = popen("echo from popen; exit 2", "r");
    char line[64];
    CHECK(fgets(line, sizeof line, f));
    fputs(line, stdout);
    printf("pclose: %d\n", WEXITSTATUS(pclose(f)));
    return 0;
}
