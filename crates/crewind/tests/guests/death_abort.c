// The root process itself dies by SIGABRT; what it printed before is there.
// signal: ABRT
#include "check.h"
int main(void) {
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    puts("about to end");
    fflush(stdout);
    abort();
    return 98;
}
