// Lock-free structures with nodes that are used again: a stack with bare indices, where the ABA problem loses and doubles nodes;
// a stack and a queue (Michael and Scott) with tags, where it must not.
// varies
#include "par.h"
enum { NODES_PER_THREAD = 4, NONE = 0 };
static _Atomic uint32_t next_of[MAX_THREADS * NODES_PER_THREAD + 2];
static _Atomic uint32_t bare_top;
// Index in the low half, tag in the high one.
static _Atomic uint64_t head, tail, queue_next[MAX_THREADS * NODES_PER_THREAD + 2];
static _Atomic uint32_t queue_value[MAX_THREADS * NODES_PER_THREAD + 2];
static int total;

static uint32_t bare_pop(void) {
    uint32_t top = bare_top;
    while (top != NONE && !atomic_compare_exchange_weak(&bare_top, &top, next_of[top])) {
    }
    return top;
}
static void bare_push(uint32_t node) {
    uint32_t top = bare_top;
    do next_of[node] = top;
    while (!atomic_compare_exchange_weak(&bare_top, &top, node));
}
static uint32_t tagged_pop(_Atomic uint64_t *top, _Atomic uint32_t *next) {
    uint64_t old = *top;
    while ((uint32_t)old != NONE) {
        uint64_t new = ((old >> 32) + 1) << 32 | next[(uint32_t)old];
        if (atomic_compare_exchange_weak(top, &old, new)) break;
    }
    return (uint32_t)old;
}
static void tagged_push(_Atomic uint64_t *top, _Atomic uint32_t *next, uint32_t node) {
    uint64_t old = *top, new;
    do {
        next[node] = (uint32_t)old;
        new = ((old >> 32) + 1) << 32 | node;
    } while (!atomic_compare_exchange_weak(top, &old, new));
}
static _Atomic uint64_t free_nodes;
static _Atomic uint32_t free_next[MAX_THREADS * NODES_PER_THREAD + 2];
static void enqueue(uint32_t node, uint32_t value) {
    queue_value[node] = value;
    uint64_t old_next = queue_next[node];
    queue_next[node] = ((old_next >> 32) + 1) << 32;
    for (;;) {
        uint64_t last = tail, next = queue_next[(uint32_t)last];
        if (last != tail) continue;
        if ((uint32_t)next == NONE) {
            if (atomic_compare_exchange_strong(&queue_next[(uint32_t)last], &next, ((next >> 32) + 1) << 32 | node)) {
                atomic_compare_exchange_strong(&tail, &last, ((last >> 32) + 1) << 32 | node);
                return;
            }
        } else {
            atomic_compare_exchange_strong(&tail, &last, ((last >> 32) + 1) << 32 | (uint32_t)next);
        }
    }
}
// Returns the node that became free, or NONE.
static uint32_t dequeue(uint32_t *value) {
    for (;;) {
        uint64_t first = head, last = tail, next = queue_next[(uint32_t)first];
        if (first != head) continue;
        if ((uint32_t)first == (uint32_t)last) {
            if ((uint32_t)next == NONE) return NONE;
            atomic_compare_exchange_strong(&tail, &last, ((last >> 32) + 1) << 32 | (uint32_t)next);
            continue;
        }
        *value = queue_value[(uint32_t)next];
        if (atomic_compare_exchange_strong(&head, &first, ((first >> 32) + 1) << 32 | (uint32_t)next)) return (uint32_t)first;
    }
}
static _Atomic long sum_in, sum_out;
static uint64_t body(int me) {
    uint64_t seen = (uint64_t)me, state = (uint64_t)me + 77;
    for (int i = 0; i < par_rounds; i++) {
        uint32_t a = bare_pop(), b = next_random(&state) % 2 ? bare_pop() : NONE;
        seen = mix(seen, (uint64_t)a << 32 | b);
        if (a) bare_push(a);
        if (b) bare_push(b);
    }
    return seen;
}
static uint64_t tagged_body(int me) {
    uint64_t seen = (uint64_t)me, state = (uint64_t)me + 99;
    for (int i = 0; i < par_rounds; i++) {
        uint32_t node = tagged_pop(&free_nodes, free_next), value;
        if (node) {
            value = (uint32_t)next_random(&state) % 1000;
            sum_in += value;
            enqueue(node, value);
        }
        uint32_t freed = dequeue(&value);
        if (freed) {
            sum_out += value;
            seen = mix(seen, value);
            tagged_push(&free_nodes, free_next, freed);
        }
    }
    return seen;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 3, 20000);
    total = par_threads * NODES_PER_THREAD;
    for (uint32_t n = 1; n <= (uint32_t)total; n++) next_of[n] = n - 1;
    bare_top = (uint32_t)total;
    par_run("bare stack", body);
    uint64_t hash = 0;
    int length = 0;
    for (uint32_t n = bare_top; n != NONE && length <= total; n = next_of[n]) hash = mix(hash, n), length++;
    printf("bare stack holds %d of %d%s, %016lx\n", length, total, length > total ? " (a circle)" : "", hash);

    for (uint32_t n = 1; n <= (uint32_t)total; n++) free_next[n] = n - 1;
    free_nodes = (uint64_t)total;
    head = tail = (uint64_t)total + 1;
    par_run("tagged", tagged_body);
    uint32_t value, left = 0, node;
    while ((node = dequeue(&value)) != NONE) {
        sum_out += value;
        left++;
        tagged_push(&free_nodes, free_next, node);
    }
    CHECK(sum_in == sum_out);
    int unused = 0;
    while (tagged_pop(&free_nodes, free_next)) unused++;
    CHECK(unused == total);
    printf("queue: %ld through, %u were left\n", sum_in, left);
    return 0;
}
