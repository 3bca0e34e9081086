// warns
// Limits, ids, priorities, names, prctl, umask, groups: what programs ask about themselves.
#include "check.h"
#include <grp.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/utsname.h>
int main(void) {
    struct rlimit limit;
    for (int r = 0; r < RLIM_NLIMITS; r++) SYS(getrlimit((__rlimit_resource_t)r, &limit));
    SYS(setrlimit(RLIMIT_FSIZE, &(struct rlimit){1000, RLIM_INFINITY}));
    signal(SIGXFSZ, SIG_IGN);
    int fd = SYS(open("limited", O_WRONLY | O_CREAT, 0600));
    char block[900] = {0};
    CHECK(write(fd, block, 900) == 900);
    CHECK(write(fd, block, 900) == 100);
    FAILS(write(fd, block, 900), EFBIG);
    struct rlimit old;
    SYS(prlimit(0, RLIMIT_FSIZE, &(struct rlimit){RLIM_INFINITY, RLIM_INFINITY}, &old));
    CHECK(old.rlim_cur == 1000);
    CHECK(write(fd, block, 900) == 900);
    uid_t r, e, s;
    SYS(getresuid(&r, &e, &s));
    CHECK(r == getuid() && e == geteuid());
    gid_t groups[100];
    int n = SYS(getgroups(100, groups));
    CHECK(n >= 0 && getgroups(0, 0) == n);
    CHECK(setfsuid((uid_t)-1) == (int)getuid());
    char name[16];
    SYS(prctl(PR_SET_NAME, "renamed"));
    SYS(prctl(PR_GET_NAME, name));
    CHECK(strcmp(name, "renamed") == 0);
    SYS(prctl(PR_SET_PDEATHSIG, SIGUSR1));
    int sig;
    SYS(prctl(PR_GET_PDEATHSIG, &sig));
    CHECK(sig == SIGUSR1);
    SYS(prctl(PR_SET_PDEATHSIG, 0));
    CHECK(prctl(PR_GET_DUMPABLE) >= 0);
    SYS(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    CHECK(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1);
    FAILS(prctl(12345), EINVAL);
    errno = 0;
    int nice_before = getpriority(PRIO_PROCESS, 0);
    SYS(setpriority(PRIO_PROCESS, 0, nice_before + 1 > 19 ? 19 : nice_before + 1));
    cpu_set_t cpus;
    SYS(sched_getaffinity(0, sizeof cpus, &cpus));
    CHECK(CPU_COUNT(&cpus) > 0);
    CHECK(sched_getscheduler(0) == SCHED_OTHER && sched_get_priority_max(SCHED_FIFO) == 99);
    struct utsname u;
    SYS(uname(&u));
    CHECK(strcmp(u.sysname, "Linux") == 0 && strcmp(u.machine, "x86_64") == 0);
    char host[256];
    SYS(gethostname(host, sizeof host));
    CHECK(getpgrp() == getpgid(0) && getsid(0) >= 0);
    CHECK(sysconf(_SC_NPROCESSORS_ONLN) > 0 && sysconf(_SC_PAGESIZE) == 4096 && sysconf(_SC_CLK_TCK) == 100);
    FAILS(syscall(9999), ENOSYS);
    setenv("NEW", "value", 1);
    CHECK(strcmp(getenv("NEW"), "value") == 0);
    puts("asked everything");
    return 0;
}
