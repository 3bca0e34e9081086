// A pseudo-terminal: line discipline, echo, window size, raw mode, a session with a controlling terminal, Ctrl-C.
#include "check.h"
#include <sys/ioctl.h>
#include <termios.h>
static char text[4096];
static size_t have, seen; // bytes read so far, and how many of them were expected
static void expect(int fd, const char *wanted) {
    char *found;
    while (!(found = strstr(text + seen, wanted))) {
        struct pollfd pfd = {fd, POLLIN, 0};
        CHECK(poll(&pfd, 1, 5000) == 1);
        ssize_t n = read(fd, text + have, sizeof text - 1 - have);
        CHECK(n > 0);
        have += (size_t)n;
    }
    seen = (size_t)(found - text) + strlen(wanted);
    printf("seen: %s\n", wanted);
    fflush(stdout);
}
int main(void) {
    int master = SYS(posix_openpt(O_RDWR | O_NOCTTY));
    SYS(grantpt(master));
    SYS(unlockpt(master));
    char name[64];
    CHECK(ptsname_r(master, name, sizeof name) == 0);
    struct winsize size = {24, 80, 0, 0};
    SYS(ioctl(master, TIOCSWINSZ, &size));
    pid_t pid = SYS(fork());
    if (pid == 0) {
        SYS(setsid());
        int tty = SYS(open(name, O_RDWR));
        SYS(ioctl(tty, TIOCSCTTY, 0));
        CHECK(isatty(tty));
        dup2(tty, 0);
        dup2(tty, 1);
        dup2(tty, 2);
        struct winsize seen;
        SYS(ioctl(0, TIOCGWINSZ, &seen));
        CHECK(tcgetpgrp(0) == getpgrp());
        printf("size %d %d\n", seen.ws_row, seen.ws_col);
        fflush(stdout);
        char line[100];
        CHECK(fgets(line, sizeof line, stdin));
        printf("got %zu: %s", strlen(line), line);
        fflush(stdout);
        struct termios t;
        SYS(tcgetattr(0, &t));
        cfmakeraw(&t);
        SYS(tcsetattr(0, TCSANOW, &t));
        CHECK(write(1, "raw now", 7) == 7);
        char keys[3];
        for (int i = 0; i < 3; i++) CHECK(read(0, keys + i, 1) == 1);
        CHECK(keys[0] == 3 && keys[1] == 'q' && keys[2] == '\r'); // Ctrl-C is only a character now
        t.c_lflag |= ISIG;
        SYS(tcsetattr(0, TCSANOW, &t));
        CHECK(write(1, "signals on", 10) == 10);
        for (;;) pause();
    }
    expect(master, "size 24 80");
    CHECK(write(master, "helx\177lo\n", 8) == 8); // DEL erases
    expect(master, "got 6: hello");
    expect(master, "raw now");
    CHECK(write(master, "\003q\r", 3) == 3);
    expect(master, "signals on");
    CHECK(write(master, "\003", 1) == 1);
    print_end("the session's leader", pid);
    return 0;
}
