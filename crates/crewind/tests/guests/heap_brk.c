// brk and sbrk by hand, and a malloc work-out with sizes from 1 byte to 20 MiB.
#include "check.h"
#include <malloc.h>
int main(void) {
    char *start = sbrk(0);
    CHECK(sbrk(3 * 4096 + 5) == start);
    memset(start, 1, 3 * 4096 + 5);
    SYS(brk(start + 100));
    CHECK(sbrk(0) == start + 100);
    SYS(brk(start + 8192));
    CHECK(start[4096] == 0 && start[99] == 1); // given back and fetched again: zeroes
    SYS(brk(start + (64 << 20)));
    start[(64 << 20) - 1] = 1;
    SYS(brk(start));
    CHECK(syscall(SYS_brk, 0) == (long)start);
    CHECK(syscall(SYS_brk, 8) == (long)start); // refused: the old value comes back
    enum { SLOTS = 500 };
    static struct {
        unsigned char *p;
        size_t n;
        unsigned char tag;
    } slot[SLOTS];
    uint64_t state = 42, sum = 0;
    for (int i = 0; i < 30000; i++) {
        int at = (int)(next_random(&state) % SLOTS);
        if (slot[at].p) {
            for (size_t k = 0; k < slot[at].n; k += 1 + slot[at].n / 16) CHECK(slot[at].p[k] == slot[at].tag);
            if (next_random(&state) % 3 == 0) {
                size_t n = slot[at].n * 2 + 1;
                if (n > 20 << 20) n = 10;
                slot[at].p = realloc(slot[at].p, n);
                memset(slot[at].p, slot[at].tag, n);
                slot[at].n = n;
            } else {
                sum += slot[at].n;
                free(slot[at].p);
                slot[at].p = 0;
            }
        } else {
            size_t n = (size_t)1 << next_random(&state) % 18;
            slot[at].p = next_random(&state) % 2 ? malloc(n) : calloc(n, 1);
            slot[at].n = n;
            slot[at].tag = (unsigned char)i;
            memset(slot[at].p, slot[at].tag, n);
        }
    }
    malloc_trim(0);
    printf("heap works: %lu\n", sum);
    return 0;
}
