// Thousands of short-lived threads, up to 100 at once; thread-local memory comes and goes with them.
// timeout: 120
#include "check.h"
#include <pthread.h>
static __thread char local[5000];
static _Atomic long total;
static void *body(void *arg) {
    memset(local, (int)(intptr_t)arg, sizeof local);
    char *p = malloc(100 + (size_t)(intptr_t)arg % 1000);
    p[0] = local[100];
    total += (unsigned char)p[0];
    free(p);
    return 0;
}
int main(void) {
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 64 << 10);
    for (int round = 0; round < 30; round++) {
        pthread_t threads[100];
        for (intptr_t i = 0; i < 100; i++) CHECK(pthread_create(&threads[i], &attr, body, (void *)(i + round)) == 0);
        for (int i = 0; i < 100; i++) CHECK(pthread_join(threads[i], 0) == 0);
    }
    printf("total %ld\n", total);
    return 0;
}
