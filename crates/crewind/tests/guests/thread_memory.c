// Threads that map, protect, unmap and write memory which others use at the same time; faults in several threads.
#include "check.h"
#include <pthread.h>
enum { THREADS = 4, ROUNDS = 300 };
static char *volatile shared[THREADS];
static _Atomic int ready, faults;
static __thread sigjmp_buf back;
static void handler(int sig, siginfo_t *info, void *context) {
    (void)sig, (void)info, (void)context;
    faults++;
    siglongjmp(back, 1);
}
static void *body(void *arg) {
    int me = (int)(intptr_t)arg;
    uint64_t sum = 0;
    for (int i = 0; i < ROUNDS; i++) {
        char *p = SYS((char *)mmap(0, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        memset(p, me + i, 16384);
        for (int k = 0; k < 16384; k += 512) sum += (unsigned char)p[k];
        SYS(mprotect(p + 4096, 4096, PROT_READ));
        if (sigsetjmp(back, 1) == 0) p[5000] = 1;
        SYS(munmap(p, 16384));
        char *q = realloc(malloc(300000), 600000);
        q[599999] = (char)i;
        free(q);
    }
    char *mine = SYS((char *)mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    strcpy(mine, "from a thread");
    shared[me] = mine;
    ready++;
    while (ready < THREADS) sched_yield();
    char *other = shared[(me + 1) % THREADS];
    CHECK(strcmp(other, "from a thread") == 0);
    return (void *)sum;
}
int main(void) {
    on_signal(SIGSEGV, handler, 0);
    pthread_t threads[THREADS];
    for (intptr_t i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], 0, body, (void *)i) == 0);
    uint64_t sum = 0;
    for (int i = 0; i < THREADS; i++) {
        void *result;
        CHECK(pthread_join(threads[i], &result) == 0);
        sum += (uint64_t)result;
    }
    printf("sum %lu, faults %d\n", sum, faults);
    return 0;
}
