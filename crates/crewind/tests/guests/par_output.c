// Threads and a child that write to standard output and standard error without any lock: a replay prints in the recorded order.
// varies
#include "par.h"
static volatile long racy;
static uint64_t body(int me) {
    for (int i = 0; i < par_rounds; i++) {
        char line[64];
        racy++;
        int n = sprintf(line, "thread %d line %d saw %ld\n", me, i, racy);
        if (i % 5 == 4) {
            struct iovec parts[2] = {{line, 4}, {line + 4, (size_t)n - 4}};
            CHECK(writev(1, parts, 2) == n);
        } else {
            CHECK(write(i % 16 ? 1 : 2, line, (size_t)n) == n);
        }
    }
    return 0;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 3, 300);
    pid_t pid = SYS(fork());
    if (pid == 0) par_threads = 2;
    par_run(pid ? "parent" : "child", body);
    if (pid) print_end("child", pid);
    return 0;
}
