// A sequence lock, a ring buffer and a flag that is waited for without system calls, between processes.
// varies
#include "share.h"
enum { SLOTS = 8 };
static struct {
    _Atomic unsigned sequence;
    _Alignas(64) volatile uint64_t a;
    _Alignas(64) volatile uint64_t b;
    _Alignas(64) _Atomic unsigned head;
    _Alignas(64) _Atomic unsigned tail;
    uint64_t ring[SLOTS][4];
    _Atomic int flag, done;
} *s;
static uint64_t writer(void) {
    unsigned spins = 0;
    uint64_t digest = 0;
    for (int i = 1; i <= par_rounds; i++) {
        atomic_fetch_add(&s->sequence, 1);
        s->a = i;
        s->b = -(uint64_t)i;
        atomic_fetch_add(&s->sequence, 1);
        while (s->head - s->tail == SLOTS) par_relax(&spins);
        uint64_t *slot = s->ring[s->head % SLOTS];
        for (int k = 0; k < 4; k++) slot[k] = i * 10 + k;
        atomic_fetch_add(&s->head, 1);
        if (i % 32 == 0) {
            s->flag = i;
            while (s->flag != -i) par_relax(&spins);
        }
        digest = mix(digest, s->tail);
    }
    s->done = 1;
    return digest;
}
static uint64_t reader(void) {
    unsigned spins = 0, taken = 0;
    uint64_t digest = 1;
    while (taken < (unsigned)par_rounds) {
        unsigned before = s->sequence;
        uint64_t a = s->a, b = s->b;
        unsigned after = s->sequence;
        if (before == after && before % 2 == 0) {
            CHECK(a == -b);
            digest = mix(digest, a);
        } else {
            digest = mix(digest, before ^ after);
        }
        if (s->tail != s->head) {
            uint64_t *slot = s->ring[s->tail % SLOTS];
            taken++;
            for (int k = 0; k < 4; k++) CHECK(slot[k] == taken * 10 + k);
            atomic_fetch_add(&s->tail, 1);
        } else {
            par_relax(&spins);
        }
        int flag = s->flag;
        if (flag > 0) s->flag = -flag;
    }
    while (!s->done) {
        int flag = s->flag;
        if (flag > 0) s->flag = -flag;
        par_relax(&spins);
    }
    return digest;
}
static uint64_t work(int number) { return number ? reader() : writer(); }
int main(int argc, char **argv) {
    par_args(argc, argv, 2, 300);
    s = share(sizeof *s);
    in_processes(2, work);
    printf("%u %u\n", s->head, s->tail);
    return 0;
}
