// Processes, and threads of them, that die holding a robust mutex that others wait for at the same moment: each next owner is
// told, and nobody waits for ever.
// timeout: 60
#include "check.h"
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
enum { PROCESSES = 8, ROUNDS = 12 };
static struct shared {
    pthread_mutex_t lock;
    long owners, told;
} *all;
static void own(void) {
    int error = pthread_mutex_lock(&all->lock);
    if (error == EOWNERDEAD) {
        all->told++;
        error = pthread_mutex_consistent(&all->lock);
    }
    CHECK(error == 0);
    all->owners++;
    for (volatile int i = 0; i < 2000; i++) {}
}
static void *dies(void *arg) {
    own();
    return arg;
}
static void *stays(void *arg) {
    own();
    atomic_store((_Atomic int *)arg, 1);
    for (;;) pause();
}
int main(void) {
    all = mmap(0, sizeof *all, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(all != MAP_FAILED);
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
    pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(&all->lock, &attr);
    for (int round = 0; round < ROUNDS; round++) {
        pid_t children[PROCESSES];
        for (int i = 0; i < PROCESSES; i++) {
            children[i] = fork();
            CHECK(children[i] >= 0);
            if (children[i] == 0) {
                pthread_t thread;
                static _Atomic int owns;
                switch (i % 4) {
                case 0: own(); break;
                case 1:
                    CHECK(pthread_create(&thread, 0, dies, 0) == 0);
                    CHECK(pthread_join(thread, 0) == 0);
                    break;
                case 2: // another thread has it
                    CHECK(pthread_create(&thread, 0, stays, (void *)&owns) == 0);
                    while (!owns) sched_yield();
                    break;
                case 3: // killed
                    own();
                    raise(round % 2 ? SIGTERM : SIGKILL);
                }
                _exit(i);
            }
        }
        for (int i = 0; i < PROCESSES; i++) {
            int status;
            CHECK(waitpid(children[i], &status, 0) == children[i]);
            if (i % 4 == 3) CHECK(WIFSIGNALED(status) && WTERMSIG(status) == (round % 2 ? SIGTERM : SIGKILL));
            else CHECK(WIFEXITED(status) && WEXITSTATUS(status) == i);
        }
    }
    printf("%ld owners, %ld told of a dead one\n", all->owners, all->told);
    return 0;
}
