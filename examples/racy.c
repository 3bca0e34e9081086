// Four threads and three bugs: a counter without a lock, a lost update in a list, an order that nobody chose.
// No two runs print the same.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { THREADS = 4, ROUNDS = 20000000 };

static volatile long balance;
static volatile int started;
static struct entry {
    struct entry *next;
    int thread;
} *volatile list, entries[THREADS][1000];
static char order[THREADS * 20 + 1];
static volatile int place;

static void *work(void *arg) {
    int me = (int)(long)arg;
    while (started < THREADS) {
    }
    for (int i = 0; i < ROUNDS; i++) {
        balance = balance + 1; // read, add, write: others may write in between
        if (i % 20000 == 0) {
            struct entry *entry = &entries[me][i / 20000];
            entry->thread = me;
            entry->next = list; // whoever comes between these two lines is lost
            list = entry;
        }
        if (i % (ROUNDS / 20) == 0 && place < THREADS * 20) order[place++] = (char)('a' + me);
    }
    return NULL;
}

int main(void) {
    pthread_t threads[THREADS];
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    for (long i = 0; i < THREADS; i++) {
        if (pthread_create(&threads[i], NULL, work, (void *)i) != 0) return 1;
        started++;
    }
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    int length = 0;
    for (struct entry *entry = list; entry; entry = entry->next) length++;
    printf("balance %ld of %d, list %d of %d, order %s, at %ld.%09ld\n", balance, THREADS * ROUNDS, length, THREADS * 1000, order,
           now.tv_sec, now.tv_nsec);
    return 0;
}
