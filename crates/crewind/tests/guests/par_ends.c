// Ends of processes while threads compute, wait, and write: exit_group, a fault, a signal from outside, exec, all from a thread that is
// not the first; the first thread gone; main returning. What the threads wrote before the end must come out again.
// varies
// timeout: 120
#include "par.h"
static int out, how;
static volatile long racy[64];
static char *self;
static uint64_t body(int me) {
    uint64_t seen = (uint64_t)me;
    if (me == par_threads - 1) {
        for (int i = 0; i < 20000; i++) seen = mix(seen, (uint64_t)racy[i & 63]);
        switch (how) {
        case 0: syscall(SYS_exit_group, (int)(seen & 63)); break;
        case 1: execl("/proc/self/exe", self, "executed", (char *)0); _exit(97);
        case 2: *(volatile int *)8 = 1; break;
        case 3: kill(getpid(), SIGTERM); for (;;) pause();
        case 4: exit(5);
        case 5: abort();
        }
    }
    if (me % 3 == 1) {
        int n = 0;
        for (;;) {
            char line[32];
            int length = sprintf(line, "%d.%d;", me, n++);
            if (write(out, line, (size_t)length) == -1) pause();
            racy[n & 63]++;
        }
    }
    if (me % 3 == 2) for (;;) pause();
    for (;;) racy[seen++ & 63]++;
    return seen;
}
int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "executed") == 0) {
        // One thread is left.
        char path[64];
        sprintf(path, "/proc/self/task/%d", (int)syscall(SYS_gettid));
        CHECK(access(path, F_OK) == 0 && syscall(SYS_gettid) == getpid());
        return 33;
    }
    par_args(argc, argv, 3, 2);
    self = argv[0];
    if (par_threads < 2) par_threads = 2;
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    for (int round = 0; round < par_rounds; round++)
        for (how = 0; how < 8; how++) {
            int fds[2];
            SYS(pipe(fds));
            fflush(stdout);
            pid_t pid = SYS(fork());
            if (pid == 0) {
                close(fds[0]);
                // Rather stop writing than die of it.
                SYS(fcntl(fds[1], F_SETFL, O_NONBLOCK));
                out = fds[1];
                par_begin(body);
                if (how == 6) return 6;
                if (how == 7) {
                    for (int i = 0; i < 20000; i++) racy[i & 63]++;
                    _exit((int)(racy[5] & 63));
                }
                pthread_exit(0);
            }
            close(fds[1]);
            char buffer[4096];
            ssize_t n;
            uint64_t seen = 0;
            long bytes = 0;
            while ((n = SYS(read(fds[0], buffer, sizeof buffer))) > 0) {
                seen = mix(seen, hash_bytes(buffer, (size_t)n));
                bytes += n;
            }
            close(fds[0]);
            printf("wrote %ld bytes, %016lx; ", bytes, seen);
            static const char *names[] = {"exit_group", "exec", "fault", "SIGTERM", "exit", "abort", "return", "_exit"};
            print_end(names[how], pid);
        }
    return 0;
}
