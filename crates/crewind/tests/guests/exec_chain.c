// A process that executes itself again and again: arguments, environment, descriptors, cwd, pid, comm, auxv.
// args: start
#include "check.h"
#include <elf.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
extern char **environ;
int main(int argc, char **argv) {
    char comm[17] = {0};
    SYS(prctl(PR_GET_NAME, comm));
    CHECK(strlen(comm) > 0 && strcmp(comm, "exe") != 0 ? 1 : argc > 1);
    CHECK(getauxval(AT_PAGESZ) == 4096);
    CHECK(getauxval(AT_PHDR) && getauxval(AT_ENTRY) && getauxval(AT_RANDOM) && getauxval(AT_EXECFN));
    CHECK(getauxval(AT_UID) == getuid() && getauxval(AT_SECURE) == 0);
    if (strcmp(argv[1], "start") == 0) {
        char *big = malloc(100001);
        memset(big, 'b', 100000);
        big[100000] = 0;
        char pid[32];
        snprintf(pid, sizeof pid, "PID=%d", getpid());
        char *args[] = {"", "1", big, "", "last arg \xff\x01", 0};
        char *env[] = {pid, "EMPTY=", "no equals sign", "DUP=1", "DUP=2", 0};
        int keep = SYS(open("/dev/null", O_RDONLY));
        SYS(dup2(keep, 50));
        SYS(dup3(keep, 51, O_CLOEXEC));
        SYS(chdir("/usr"));
        execve("/proc/self/exe", args, env);
        return 98;
    }
    int round = atoi(argv[1]);
    CHECK(argc == 5 && strcmp(argv[0], "") == 0 && strlen(argv[2]) == 100000 && strcmp(argv[4], "last arg \xff\x01") == 0);
    int count = 0;
    for (char **e = environ; *e; e++) count++;
    CHECK(count == 5 && strcmp(environ[2], "no equals sign") == 0);
    CHECK(atoi(getenv("PID")) == getpid());
    CHECK(fcntl(50, F_GETFD) == 0);
    FAILS(fcntl(51, F_GETFD), EBADF);
    char cwd[64];
    CHECK(getcwd(cwd, sizeof cwd) && strcmp(cwd, "/usr") == 0);
    if (round == 5) {
        puts("executed five times");
        return 0;
    }
    char next[16];
    snprintf(next, sizeof next, "%d", round + 1);
    argv[1] = next;
    execve("/proc/self/exe", argv, environ);
    return 98;
}
