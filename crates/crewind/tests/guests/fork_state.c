// What a fork copies and shares: descriptors and their offsets, memory, cwd, umask, locks, alarms.
#include "check.h"
int main(void) {
    int fd = SYS(open("shared", O_RDWR | O_CREAT | O_TRUNC, 0600));
    CHECK(write(fd, "0123456789", 10) == 10);
    SYS(lseek(fd, 2, SEEK_SET));
    volatile int mine = 1;
    SYS(mkdir("dir", 0700));
    mode_t old = umask(027);
    alarm(1000);
    pid_t pid = SYS(fork());
    if (pid == 0) {
        char c;
        CHECK(read(fd, &c, 1) == 1 && c == '2');
        CHECK(alarm(0) == 0);
        CHECK(umask(0) == 027);
        SYS(chdir("dir"));
        mine = 2;
        SYS(close(fd));
        _exit(5);
    }
    print_end("child", pid);
    char c;
    CHECK(read(fd, &c, 1) == 1);
    printf("offset moved to '%c', mine %d, umask %o %o, alarm %d\n", c, mine, umask(old), old,
           alarm(0) > 990);
    CHECK(access("dir", F_OK) == 0);
    // A child's child outlives its parent and is adopted.
    int fds[2];
    SYS(pipe(fds));
    pid = SYS(fork());
    if (pid == 0) {
        // Asked here: the child may not run before its parent is gone.
        pid_t parent = getpid();
        if (SYS(fork()) == 0) {
            while (getppid() == parent) sleep_ms(1);
            CHECK(write(fds[1], "adopted", 7) == 7);
            _exit(0);
        }
        sleep_ms(5);
        _exit(0);
    }
    print_end("middle", pid);
    close(fds[1]);
    char text[8] = {0};
    CHECK(read(fds[0], text, 7) == 7);
    puts(text);
    CHECK(read(fds[0], text, 1) == 0);
    return 0;
}
