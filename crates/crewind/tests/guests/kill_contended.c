// Processes are killed while their threads hand memory over to each other all the time: each at another moment.
#include "check.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static long queue[16], put, taken, sum;
static void *_Atomic boxes[32];
static void *work(void *arg) {
    unsigned long r = (unsigned long)arg;
    for (;;) {
        r = r * 6364136223846793005ul + 1442695040888963407ul;
        char *block = malloc(r >> 56 | 8);
        block[0] = (char)r;
        free(atomic_exchange(&boxes[r >> 40 & 31], block));
        pthread_mutex_lock(&lock);
        if ((long)arg % 2 == 0) {
            while (put - taken == 16) pthread_cond_wait(&changed, &lock);
            queue[put++ % 16] = (long)r;
        } else {
            while (put == taken) pthread_cond_wait(&changed, &lock);
            sum += queue[taken++ % 16];
        }
        pthread_cond_broadcast(&changed);
        pthread_mutex_unlock(&lock);
    }
    return NULL;
}
int main(void) {
    for (int n = 0; n < 10; n++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            pthread_t t;
            for (long i = 0; i < 4; i++) CHECK(pthread_create(&t, NULL, work, (void *)i) == 0);
            usleep((useconds_t)(3000 + n * 2300));
            kill(getpid(), SIGKILL);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    }
    puts("all killed");
    return 0;
}
