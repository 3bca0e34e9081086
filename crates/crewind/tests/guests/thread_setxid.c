// Ids changed for all threads: the C library sends each of them a signal of its own (33), and they all make the call.
#include "check.h"
#include <pthread.h>
static pthread_barrier_t barrier;
static volatile int done;
static void *body(void *arg) {
    long spins = 0;
    pthread_barrier_wait(&barrier);
    if (arg)
        while (!done) spins++;
    pthread_barrier_wait(&barrier);
    return (void *)(intptr_t)(getegid() == getgid() && spins >= 0);
}
int main(void) {
    pthread_t threads[4];
    pthread_barrier_init(&barrier, NULL, 5);
    for (intptr_t i = 0; i < 4; i++) CHECK(pthread_create(&threads[i], NULL, body, (void *)(i % 2)) == 0);
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < 5; i++) {
        SYS(setegid(getegid()));
        SYS(setreuid(getuid(), geteuid()));
        SYS(setresgid((gid_t)-1, getegid(), (gid_t)-1));
    }
    done = 1;
    pthread_barrier_wait(&barrier);
    int same = 0;
    for (int i = 0; i < 4; i++) {
        void *value;
        CHECK(pthread_join(threads[i], &value) == 0);
        same += (int)(intptr_t)value;
    }
    printf("%d threads have the ids of the process\n", same);
    return 0;
}
