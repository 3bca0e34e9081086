// fork while other threads write: the child's picture of memory is of one moment, and its hash must come out again. Children
// write too, into their own copies. Any thread may fork.
// varies
#include "par.h"
enum { WORDS = 8 * PAGE / 8 };
static volatile long words[WORDS] __attribute__((aligned(4096)));
static _Atomic int forking;
static uint64_t body(int me) {
    uint64_t seen = (uint64_t)me, state = (uint64_t)me * 7 + 1;
    unsigned spins = 0;
    if (me == par_threads - 1) {
        for (int i = 0; i < par_rounds; i++) {
            fflush(stdout);
            pid_t pid = SYS(fork());
            if (pid == 0) {
                uint64_t before = hash_bytes((void *)words, sizeof words);
                for (int k = 0; k < WORDS; k += 100) words[k] = i;
                // Nobody else writes here now.
                for (int k = 0; k < WORDS; k += 100) CHECK(words[k] == i);
                dprintf(1, "child %d: %016lx\n", i, before);
                _exit(i % 50);
            }
            int status;
            for (int k = 0; k < 1000; k++) words[k % 16] += k;
            CHECK(waitpid(pid, &status, 0) == pid);
            CHECK(WIFEXITED(status) && WEXITSTATUS(status) == i % 50);
            seen = mix(seen, (uint64_t)words[i % 16]);
        }
        forking = 0;
        return seen;
    }
    while (forking) {
        for (int i = 0; i < 200; i++) {
            uint64_t at = next_random(&state) % WORDS;
            seen = mix(seen, (uint64_t)words[at]);
            words[at] = (long)seen;
        }
        par_relax(&spins);
    }
    return seen;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 3, 10);
    forking = 1;
    par_run("seen", body);
    return 0;
}
