// Threads: creation, results, join and detach, stacks, ids, TLS, once, exit of the first thread.
#include "check.h"
#include <pthread.h>
static __thread int mine = 5;
static pthread_key_t key;
static int destroyed;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void destructor(void *p) {
    pthread_mutex_lock(&lock);
    destroyed += (int)(intptr_t)p;
    pthread_mutex_unlock(&lock);
}
static void *body(void *arg) {
    int n = (int)(intptr_t)arg;
    CHECK(mine == 5);
    mine += n;
    pthread_setspecific(key, (void *)(intptr_t)(n + 1));
    CHECK(syscall(SYS_gettid) != getpid());
    char buffer[20000];
    memset(buffer, n, sizeof buffer);
    for (int i = 0; i < 10; i++) {
        sched_yield();
        CHECK(mine == 5 + n && buffer[i * 1000] == (char)n);
    }
    return (void *)(intptr_t)(n * n);
}
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int initialised;
static void initialise(void) { initialised++; }
static void *last(void *first) {
    CHECK(pthread_join(*(pthread_t *)first, 0) == 0);
    puts("the first thread is gone, the process is not");
    exit(4 - 4);
}
int main(void) {
    pthread_key_create(&key, destructor);
    pthread_t threads[20];
    for (intptr_t i = 0; i < 20; i++) CHECK(pthread_create(&threads[i], 0, body, (void *)i) == 0);
    long sum = 0;
    for (int i = 0; i < 20; i++) {
        void *result;
        CHECK(pthread_join(threads[i], &result) == 0);
        sum += (long)(intptr_t)result;
        pthread_once(&once, initialise);
    }
    printf("sum %ld, destroyed %d, once %d\n", sum, destroyed, initialised);
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 4 << 20);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    CHECK(pthread_create(&threads[0], &attr, body, (void *)3) == 0);
    static pthread_t self;
    self = pthread_self();
    CHECK(pthread_create(&threads[1], 0, last, &self) == 0);
    pthread_exit(0);
}
