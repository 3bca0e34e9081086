// signal: KILL
// Killed while one thread waits and others work: what the others did before is replayed.
#include "check.h"
#include <pthread.h>
static int pipes[2];
static void *waits(void *arg) {
    (void)arg;
    char c;
    SYS(read(pipes[0], &c, 1));
    return NULL;
}
int main(void) {
    SYS(pipe(pipes));
    pthread_t t[3];
    for (int i = 0; i < 3; i++) CHECK(pthread_create(&t[i], NULL, waits, NULL) == 0);
    sleep_ms(20);
    for (int i = 0; i < 200; i++) dprintf(1, "line %d\n", i);
    kill(getpid(), SIGKILL);
    for (;;) pause();
}
