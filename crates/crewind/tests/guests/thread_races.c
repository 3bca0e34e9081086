// Data races on purpose: an unsynchronised counter, a spin on a flag, a lock-free stack. What comes out varies from run to
// run; a replay must repeat it.
// varies
// timeout: 120
#include "check.h"
#include <pthread.h>
enum { THREADS = 4, ROUNDS = 200000 };
static volatile long counter;
static volatile int flag, go;
static long long order;
struct node {
    struct node *next;
    int value;
};
static struct node *top;
static struct node nodes[THREADS][1000];
static void *race(void *arg) {
    int me = (int)(intptr_t)arg;
    while (!go) {
    }
    for (int i = 0; i < ROUNDS; i++) counter = counter + 1;
    for (int i = 0; i < 1000; i++) {
        struct node *n = &nodes[me][i];
        n->value = me;
        n->next = __atomic_load_n(&top, __ATOMIC_RELAXED);
        while (!__atomic_compare_exchange_n(&top, &n->next, n, 1, __ATOMIC_RELEASE, __ATOMIC_RELAXED)) {
        }
    }
    while (flag != me) {
    }
    order = order * 10 + me;
    flag = me + 1;
    return 0;
}
int main(void) {
    pthread_t threads[THREADS];
    for (intptr_t i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], 0, race, (void *)i) == 0);
    go = 1;
    for (int i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], 0) == 0);
    uint64_t hash = 7;
    int count = 0;
    for (struct node *n = top; n; n = n->next) hash = hash * 31 + (uint64_t)n->value, count++;
    CHECK(count == THREADS * 1000);
    printf("counter %ld, stack %016lx, order %lld\n", counter, hash, order);
    return 0;
}
