// Shared by all guest programs: a failed check says where and ends the program with status 99.
#ifndef CHECK_H
#define CHECK_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define CHECK(c)                                                                            \
    do {                                                                                    \
        if (!(c)) {                                                                         \
            dprintf(2, "%s:%d: not so: %s (errno %d %s)\n", __FILE__, __LINE__, #c, errno,  \
                    strerror(errno));                                                       \
            _exit(99);                                                                      \
        }                                                                                   \
    } while (0)

// Evaluates a call that returns -1 on failure.
#define SYS(x)                                                                              \
    ({                                                                                      \
        __typeof__(x) sys_result = (x);                                                     \
        if (sys_result == (__typeof__(x))-1) {                                              \
            dprintf(2, "%s:%d: %s: %s\n", __FILE__, __LINE__, #x, strerror(errno));         \
            _exit(99);                                                                      \
        }                                                                                   \
        sys_result;                                                                         \
    })

// Checks that a call fails with the given errno.
#define FAILS(x, e)                                                                         \
    do {                                                                                    \
        errno = 0;                                                                          \
        CHECK((long)(x) == -1);                                                             \
        CHECK(errno == (e));                                                                \
    } while (0)

// A xorshift generator, so that work does not depend on the C library's.
static inline uint64_t next_random(uint64_t *state) {
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

// FNV-1a, to print large results in one number.
static inline uint64_t hash_bytes(const void *data, size_t len) {
    const unsigned char *p = data;
    uint64_t h = 0xcbf29ce484222325;
    for (size_t i = 0; i < len; i++) h = (h ^ p[i]) * 0x100000001b3;
    return h;
}

static inline void on_signal(int sig, void (*handler)(int, siginfo_t *, void *), int flags) {
    struct sigaction sa;
    memset(&sa, 0, sizeof sa);
    sa.sa_sigaction = handler;
    sa.sa_flags = SA_SIGINFO | flags;
    sigemptyset(&sa.sa_mask);
    SYS(sigaction(sig, &sa, 0));
}

// Waits for `pid` and prints how it ended.
static inline void print_end(const char *what, pid_t pid) {
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
    if (WIFEXITED(status))
        printf("%s: exit %d\n", what, WEXITSTATUS(status));
    else if (WIFSIGNALED(status))
        printf("%s: signal %d\n", what, WTERMSIG(status));
    else
        printf("%s: status %#x\n", what, status);
    fflush(stdout);
}

static inline void sleep_ms(long ms) {
    struct timespec ts = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&ts, &ts) == -1 && errno == EINTR) {
    }
}
#endif
