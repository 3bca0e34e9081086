// Threads and processes: fork from a thread, atfork handlers, exec while others run, waiting in another thread,
// signals to the process, memory shared with a child.
#include "check.h"
#include <pthread.h>
static volatile int stop;
static int before, after_parent, after_child;
static void prepare(void) { before++; }
static void parent(void) { after_parent++; }
static void child(void) { after_child++; }
static void *busy(void *arg) {
    volatile long *count = arg;
    while (!stop) ++*count;
    return 0;
}
static void *forker(void *arg) {
    (void)arg;
    for (int i = 0; i < 5; i++) {
        pid_t pid = SYS(fork());
        if (pid == 0) {
            CHECK(after_child == 1);
            char *p = malloc(1000);
            memset(p, 1, 1000);
            _exit(30 + i);
        }
        print_end("forked by a thread", pid);
    }
    return 0;
}
static void *waiter(void *arg) {
    int status;
    CHECK(waitpid(*(pid_t *)arg, &status, 0) == *(pid_t *)arg);
    return (void *)(intptr_t)WEXITSTATUS(status);
}
static void *executor(void *arg) {
    execl("/bin/echo", "echo", "executed by a thread", (char *)0);
    return arg;
}
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
int main(void) {
    pthread_atfork(prepare, parent, child);
    static long counts[2];
    pthread_t spinning[2], t;
    for (int i = 0; i < 2; i++) CHECK(pthread_create(&spinning[i], 0, busy, &counts[i]) == 0);
    CHECK(pthread_create(&t, 0, forker, 0) == 0);
    CHECK(pthread_join(t, 0) == 0);
    printf("atfork %d %d\n", before, after_parent);
    fflush(stdout);
    pid_t pid = SYS(fork());
    if (pid == 0) {
        sleep_ms(20);
        _exit(9);
    }
    CHECK(pthread_create(&t, 0, waiter, &pid) == 0);
    void *result;
    CHECK(pthread_join(t, &result) == 0);
    printf("waited for in a thread: %ld\n", (long)(intptr_t)result);
    stop = 1;
    for (int i = 0; i < 2; i++) CHECK(pthread_join(spinning[i], 0) == 0);
    CHECK(counts[0] > 0 && counts[1] > 0);
    stop = 0;
    fflush(stdout);
    pid = SYS(fork());
    if (pid == 0) {
        CHECK(pthread_create(&spinning[0], 0, busy, &counts[0]) == 0);
        CHECK(pthread_create(&t, 0, executor, 0) == 0);
        pthread_mutex_lock(&lock);
        for (;;) pause();
    }
    print_end("exec by a thread", pid);
    pid = SYS(fork());
    if (pid == 0) {
        setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
        CHECK(pthread_create(&spinning[0], 0, busy, &counts[0]) == 0);
        sleep_ms(5);
        *(volatile int *)8 = 1;
        _exit(1);
    }
    print_end("fault while a thread runs", pid);
    return 0;
}
