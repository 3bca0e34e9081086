// Shared by the share_ programs: processes that share memory, and a digest of what each of them saw.
//
// What comes out may differ from run to run; a replay must repeat it to the bit. Nothing depends on timing for its end: each
// wait is for something that another process certainly does.
#ifndef SHARE_H
#define SHARE_H
#include "par.h"

// Memory that forked processes share.
static inline void *share(size_t size) {
    return SYS(mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
}

// Runs `work(number)` in so many processes besides this one, which is number 0, and prints what each returned.
static inline void in_processes(int count, uint64_t (*work)(int number)) {
    uint64_t *results = share(count * sizeof *results);
    pid_t pids[MAX_THREADS];
    fflush(stdout);
    for (int i = 1; i < count; i++) {
        pids[i] = SYS(fork());
        if (pids[i] == 0) {
            results[i] = work(i);
            _exit(i);
        }
    }
    results[0] = work(0);
    for (int i = 1; i < count; i++) {
        int status;
        SYS(waitpid(pids[i], &status, 0));
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == i);
    }
    for (int i = 0; i < count; i++) printf("process %d: %016lx\n", i, results[i]);
    fflush(stdout);
}
#endif
