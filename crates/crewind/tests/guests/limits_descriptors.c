// A program that has used up all descriptors that it may have, the hard limit included, and then forks, makes threads, and gives
// some back. The hard limit can be lower than the 5000 that it wants.
#include "check.h"
#include <pthread.h>
static void *nothing(void *arg) { return arg; }
static void make_thread(void) {
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, nothing, NULL) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
}
int main(void) {
    struct rlimit l;
    SYS(getrlimit(RLIMIT_NOFILE, &l));
    if (l.rlim_max > 5000) l.rlim_max = 5000;
    l.rlim_cur = l.rlim_max;
    SYS(setrlimit(RLIMIT_NOFILE, &l));
    struct rlimit now;
    SYS(getrlimit(RLIMIT_NOFILE, &now));
    CHECK(now.rlim_cur == l.rlim_cur && now.rlim_max == l.rlim_max);
    rlim_t opened = 0;
    while (open("/dev/null", O_RDONLY) >= 0) opened++;
    // The recorder keeps an eighth or 64.
    CHECK(errno == EMFILE && opened + 3 <= l.rlim_cur && opened + 70 > l.rlim_cur - l.rlim_cur / 8 && opened + 70 > l.rlim_cur - 64);
    for (int i = 0; i < 2; i++) {
        fflush(stdout);
        pid_t pid = SYS(fork());
        if (pid == 0) {
            make_thread();
            _exit(i + 5);
        }
        print_end("child", pid);
        make_thread();
    }
    close(7);
    CHECK(open("/dev/null", O_RDONLY) == 7);
    printf("enough\n");
    return 0;
}
