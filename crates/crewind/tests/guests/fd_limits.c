// Descriptors: lowest-first numbers, dup2 and dup3, close_range, running out, F_DUPFD, CLOEXEC, many at once.
#include "check.h"
#include <dirent.h>
#include <linux/close_range.h>
int main(void) {
    int fd = SYS(open("/dev/null", O_RDWR));
    CHECK(fd == 3);
    CHECK(dup(fd) == 4);
    CHECK(dup2(fd, 10) == 10 && dup2(fd, fd) == fd);
    FAILS(dup3(fd, fd, 0), EINVAL);
    CHECK(dup3(fd, 20, O_CLOEXEC) == 20 && fcntl(20, F_GETFD) == FD_CLOEXEC);
    CHECK(fcntl(fd, F_DUPFD, 50) == 50 && fcntl(fd, F_DUPFD_CLOEXEC, 50) == 51);
    SYS(close(4));
    CHECK(dup(fd) == 4);
    FAILS(close(99), EBADF);
    FAILS(close(-1), EBADF);
    FAILS(dup2(fd, 100000000), EBADF);
    for (int i = 60; i < 70; i++) CHECK(dup2(fd, i) == i);
    SYS(close_range(62, 65, 0));
    CHECK(fcntl(61, F_GETFD) == 0 && fcntl(66, F_GETFD) == 0);
    FAILS(fcntl(63, F_GETFD), EBADF);
    SYS(close_range(66, ~0U, CLOSE_RANGE_CLOEXEC));
    CHECK(fcntl(69, F_GETFD) == FD_CLOEXEC);
    FAILS(close_range(5, 4, 0), EINVAL);
    SYS(close_range(3, ~0U, 0));
    CHECK(open("/dev/null", O_RDONLY) == 3);
    // Everything still works: the runtime's own descriptors survived.
    for (int i = 0; i < 1100; i++) close(3 + i);
    pid_t pid = SYS(fork());
    if (pid == 0) {
        for (int i = 3; i < 1100; i++) close(i);
        execl("/bin/echo", "echo", "after closing everything", (char *)0);
        _exit(98);
    }
    print_end("child", pid);
    SYS(setrlimit(RLIMIT_NOFILE, &(struct rlimit){32, 1024}));
    int count = 0;
    while (open("/dev/null", O_RDONLY) >= 0) count++;
    CHECK(errno == EMFILE);
    printf("%d descriptors up to a limit of 32\n", count);
    FAILS(dup(0), EMFILE);
    int p[2];
    FAILS(pipe(p), EMFILE);
    SYS(close(20));
    CHECK(open("/dev/null", O_RDONLY) == 20);
    SYS(close_range(3, ~0U, 0));
    SYS(setrlimit(RLIMIT_NOFILE, &(struct rlimit){1024, 1024}));
    count = 0;
    while (open("/dev/null", O_RDONLY) >= 0) count++;
    printf("about a thousand: %d\n", count > 900);
    DIR *none = opendir("/proc/self/fd");
    CHECK(!none && errno == EMFILE);
    SYS(close_range(3, ~0U, 0));
    // The standard descriptors can be closed and reopened.
    int saved = SYS(fcntl(1, F_DUPFD, 3));
    SYS(close(1));
    CHECK(open("/dev/null", O_WRONLY) == 1);
    CHECK(write(1, "nowhere", 7) == 7);
    SYS(dup2(saved, 1));
    puts("standard output is back");
    return 0;
}
