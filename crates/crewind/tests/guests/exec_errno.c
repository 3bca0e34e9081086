// Every way in which execve fails, with the process going on undisturbed afterwards.
#include "check.h"
int main(void) {
    char *argv[] = {"x", 0}, *envp[] = {0};
    FAILS(execve("/no/such", argv, envp), ENOENT);
    FAILS(execve("", argv, envp), ENOENT);
    FAILS(execve("/etc", argv, envp), EACCES);
    FAILS(execve("/etc/passwd", argv, envp), EACCES);
    FAILS(execve("/etc/passwd/x", argv, envp), ENOTDIR);
    SYS(symlink("loop", "loop"));
    FAILS(execve("loop", argv, envp), ELOOP);
    char name[5000];
    memset(name, 'n', sizeof name);
    name[sizeof name - 1] = 0;
    FAILS(execve(name, argv, envp), ENAMETOOLONG);
    FAILS(syscall(SYS_execve, 8, argv, envp), EFAULT);
    FAILS(syscall(SYS_execve, "/bin/true", 8, envp), EFAULT);
    char *bad[] = {(char *)8, 0};
    FAILS(execve("/bin/true", bad, envp), EFAULT);
    int fd = SYS(open("elf", O_WRONLY | O_CREAT, 0755));
    FAILS(execve("elf", argv, envp), ETXTBSY);
    CHECK(write(fd, "\177ELF\1\1\1", 7) == 7);
    SYS(close(fd));
    FAILS(execve("elf", argv, envp), ENOEXEC);
    size_t huge = 200 << 10;
    char *arg = malloc(huge);
    memset(arg, 'a', huge);
    arg[huge - 1] = 0;
    char *too_long[] = {"x", arg, 0};
    FAILS(execve("/bin/true", too_long, envp), E2BIG);
    FAILS(execveat(-1, "true", argv, envp, 0), EBADF);
    SYS(chmod("elf", 0644));
    FAILS(execve("elf", argv, envp), EACCES);
    int dir = SYS(open("/bin", O_PATH | O_DIRECTORY));
    pid_t pid = SYS(fork());
    if (pid == 0) {
        char *echo[] = {"echo", "through execveat", 0};
        execveat(dir, "echo", echo, envp, 0);
        _exit(98);
    }
    print_end("execveat", pid);
    pid = SYS(fork());
    if (pid == 0) {
        char *echo[] = {"echo", "through fexecve", 0};
        fexecve(SYS(open("/bin/echo", O_RDONLY)), echo, envp);
        _exit(98);
    }
    print_end("fexecve", pid);
    puts("every failure came back");
    return 0;
}
