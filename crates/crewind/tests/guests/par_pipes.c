// Hand-off through the kernel: a token goes round through pipes, then socket pairs, then eventfds, and whoever has it changes plain
// memory. The kernel is the only thing that orders those accesses.
// varies
#include "par.h"
#include <sys/eventfd.h>
static int in[MAX_THREADS], out[MAX_THREADS];
static volatile long counter;
static volatile char page[PAGE * 2];
static uint64_t body(int me) {
    uint64_t seen = (uint64_t)me, token;
    for (int i = 0; i < par_rounds; i++) {
        CHECK(read(in[me], &token, 8) == 8);
        long value = counter;
        CHECK(value == (long)i * par_threads + me);
        counter = value + 1;
        page[value * 17 % (long)sizeof page] ^= (char)value;
        seen = mix(seen, (uint64_t)page[value % (long)sizeof page]);
        token = 1;
        if (i + 1 < par_rounds || me + 1 < par_threads) CHECK(write(out[me], &token, 8) == 8);
    }
    return seen;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 2, 500);
    static const char *names[] = {"pipes", "sockets", "eventfds"};
    for (int kind = 0; kind < 3; kind++) {
        for (int i = 0; i < par_threads; i++) {
            int fds[2];
            if (kind == 0)
                SYS(pipe(fds));
            else if (kind == 1)
                SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, fds));
            else
                fds[0] = SYS(eventfd(0, 0)), fds[1] = SYS(dup(fds[0]));
            in[(i + 1) % par_threads] = fds[0];
            out[i] = fds[1];
        }
        counter = 0;
        uint64_t token = 1;
        CHECK(write(out[par_threads - 1], &token, 8) == 8);
        par_run(names[kind], body);
        CHECK(counter == (long)par_rounds * par_threads);
        for (int i = 0; i < par_threads; i++) close(in[i]), close(out[i]);
    }
    printf("%016lx\n", hash_bytes((char *)page, sizeof page));
    return 0;
}
