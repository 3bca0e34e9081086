// The root process itself dies by SIGKILL; what it printed before is there.
// signal: KILL
#include "check.h"
int main(void) {
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    puts("about to end");
    fflush(stdout);
    kill(getpid(), SIGKILL);
    return 98;
}
