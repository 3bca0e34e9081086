// Contended data, one way per run: THREADS ROUNDS WAY.
#include "par.h"
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t not_empty = PTHREAD_COND_INITIALIZER, not_full = PTHREAD_COND_INITIALIZER;
static volatile long counter;
static char lines[4096 * 2] __attribute__((aligned(4096)));
static void *mutex_counter(void *arg) {
    for (long i = 0; i < size; i++) {
        pthread_mutex_lock(&lock);
        counter++;
        pthread_mutex_unlock(&lock);
    }
    return arg;
}
static void *atomic_counter(void *arg) {
    for (long i = 0; i < size; i++) __atomic_fetch_add(&counter, 1, __ATOMIC_SEQ_CST);
    return arg;
}
static void *plain_counter(void *arg) {
    for (long i = 0; i < size; i++) counter++;
    return arg;
}
static void *one_line(void *arg) {
    volatile long *mine = (volatile long *)(void *)(lines + 8 * (long)arg);
    for (long i = 0; i < size; i++) ++*mine;
    return arg;
}
static void *two_lines(void *arg) {
    volatile long *mine = (volatile long *)(void *)(lines + 128 * (long)arg);
    for (long i = 0; i < size; i++) ++*mine;
    return arg;
}
// A bounded queue: even threads produce, odd ones consume.
enum { SLOTS = 64 };
static long slots[SLOTS], put, taken, sum;
static void *queue(void *arg) {
    for (long i = 0; i < size; i++) {
        pthread_mutex_lock(&lock);
        if ((long)arg % 2 == 0) {
            while (put - taken == SLOTS) pthread_cond_wait(&not_full, &lock);
            slots[put++ % SLOTS] = i;
            pthread_cond_signal(&not_empty);
        } else {
            while (put == taken) pthread_cond_wait(&not_empty, &lock);
            sum += slots[taken++ % SLOTS];
            pthread_cond_signal(&not_full);
        }
        pthread_mutex_unlock(&lock);
    }
    return arg;
}
// Open addressing; a word changes in one access, so readers need no lock.
enum { TABLE = 1 << 16 };
static _Atomic uint64_t table[TABLE];
static void *hash_table(void *arg) {
    uint64_t state = (uint64_t)arg + 1, found = 0;
    for (long i = 0; i < size; i++) {
        uint64_t r = next_random(&state), key = r % (TABLE / 2) + 1;
        for (uint64_t at = key * 0x9e3779b97f4a7c15 >> 48;; at = (at + 1) % TABLE) {
            uint64_t entry = atomic_load_explicit(&table[at], memory_order_acquire);
            if ((r >> 32) % 100 == 0) {
                if (entry && entry >> 32 != key) continue;
                if (!atomic_compare_exchange_strong(&table[at], &entry, key << 32 | (r >> 40))) continue;
                break;
            }
            if (!entry || entry >> 32 == key) {
                found += entry & 0xffffffff;
                break;
            }
        }
    }
    return (void *)found;
}
// Blocks allocated by one thread and freed by another.
static void *_Atomic boxes[256];
static void *pass_memory(void *arg) {
    uint64_t state = (uint64_t)arg + 1;
    for (long i = 0; i < size; i++) {
        uint64_t r = next_random(&state);
        char *block = malloc(r % 500 + 8);
        block[0] = (char)r;
        free(atomic_exchange(&boxes[r >> 32 & 255], block));
    }
    return arg;
}
int main(int argc, char **argv) {
    static const struct { const char *name; void *(*body)(void *); } ways[] = {
        {"mutex", mutex_counter}, {"xadd", atomic_counter}, {"plain", plain_counter}, {"line", one_line}, {"page", two_lines},
        {"queue", queue}, {"hash", hash_table}, {"malloc", pass_memory}};
    arguments(argc, argv, 1000000);
    for (size_t w = 0; argc > 3 && w < sizeof ways / sizeof *ways; w++)
        if (!strcmp(argv[3], ways[w].name)) {
            run_all(ways[w].body);
            printf("%ld %ld\n", counter, sum);
            return 0;
        }
    fprintf(stderr, "unknown way\n");
    return 2;
}
