// malloc and free across threads: blocks are allocated by one thread, filled, passed on through slots by exchange, checked and freed
// by another; large ones map and unmap. Addresses count as output.
// varies
#include "par.h"
enum { SLOTS = 32 };
struct block {
    size_t size;
    unsigned char data[];
};
static struct block *_Atomic slots[SLOTS];
static void check_and_free(struct block *block) {
    for (size_t k = 0; k < block->size; k += 97) CHECK(block->data[k] == (unsigned char)block->size);
    free(block);
}
static uint64_t body(int me) {
    uint64_t seen = (uint64_t)me, state = (uint64_t)me + 5;
    for (int i = 0; i < par_rounds; i++) {
        uint64_t r = next_random(&state);
        size_t size = r % 100 == 0 ? 200000 : r % 7 ? r % 300 : r % 9000;
        struct block *block = malloc(sizeof *block + size);
        block->size = size;
        memset(block->data, (int)size, size);
        if (r & 1 << 20) {
            block = realloc(block, sizeof *block + size + 200);
            memset(block->data + size, (int)(size + 200), 200);
            memset(block->data, (int)(size + 200), size);
            block->size = size + 200;
        }
        seen = mix(seen, (uint64_t)block);
        block = atomic_exchange(&slots[r >> 32 & (SLOTS - 1)], block);
        if (block) {
            seen = mix(seen, block->size);
            check_and_free(block);
        }
    }
    return seen;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 2, 8000);
    par_run("seen", body);
    for (int i = 0; i < SLOTS; i++) if (slots[i]) check_and_free(slots[i]);
    return 0;
}
