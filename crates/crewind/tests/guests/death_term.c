// The root process itself dies by SIGTERM; what it printed before is there.
// signal: TERM
#include "check.h"
int main(void) {
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    puts("about to end");
    fflush(stdout);
    raise(SIGTERM);
    return 98;
}
