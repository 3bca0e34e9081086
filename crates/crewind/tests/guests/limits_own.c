// Limits of file size, descriptors and address space, the hard ones too, hold for the program alone: its recording goes
// on, and so does that of what it executes.
#include "check.h"
static void log_much(void) {
    static char block[1 << 16];
    int zero = SYS(open("/dev/zero", O_RDONLY));
    for (int i = 0; i < 300; i++) CHECK(read(zero, block, sizeof block) == sizeof block);
    close(zero);
    for (int i = 0; i < 30000; i++) CHECK(syscall(SYS_getppid) >= 0);
}
static void limit(int resource, rlim_t soft, rlim_t hard) {
    struct rlimit l = {soft, hard}, got;
    SYS(setrlimit((__rlimit_resource_t)resource, &l));
    SYS(getrlimit((__rlimit_resource_t)resource, &got));
    CHECK(got.rlim_cur == soft && got.rlim_max == hard);
    SYS(prlimit(0, (__rlimit_resource_t)resource, NULL, &got));
    CHECK(got.rlim_cur == soft && got.rlim_max == hard);
}
int main(int argc, char **argv) {
    (void)argv;
    signal(SIGXFSZ, SIG_IGN);
    if (argc == 1) {
        limit(RLIMIT_FSIZE, 1000, 2000);
        limit(RLIMIT_NOFILE, 20, 30);
        limit(RLIMIT_AS, 600 << 20, 700 << 20);
        limit(RLIMIT_DATA, 8 << 20, 9 << 20);
        log_much();
        char *data = mmap(NULL, 4 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(data != MAP_FAILED);
        CHECK(mmap(NULL, 6 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED && errno == ENOMEM);
        CHECK(mremap(data, 4 << 20, 10 << 20, MREMAP_MAYMOVE) == MAP_FAILED && errno == ENOMEM);
        FAILS((intptr_t)sbrk(16 << 20), ENOMEM);
        SYS(munmap(data, 4 << 20));
        struct rlimit above = {2500, 2000};
        FAILS(setrlimit(RLIMIT_FSIZE, &above), EINVAL);
    }
    log_much();
    int fd = SYS(open("limited", O_WRONLY | O_CREAT | O_TRUNC, 0600));
    static char block[3000];
    CHECK(write(fd, block, sizeof block) == 1000);
    FAILS(write(fd, block, 1), EFBIG);
    close(fd);
    int opened = 0;
    while (open("/dev/null", O_RDONLY) >= 0) opened++;
    CHECK(errno == EMFILE && opened <= 17);
    for (int i = 0; i < 30000; i++) CHECK(syscall(SYS_getppid) >= 0);
    FAILS(dup(1), EMFILE);
    for (int i = 3; i < 20; i++) close(i);
    int maps = 0;
    while (mmap(NULL, 32 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED) maps++;
    CHECK(errno == ENOMEM && maps >= 12 && maps < 19);
    printf("about as many mappings as may be\n");
    fflush(stdout);
    pid_t pid = SYS(fork());
    if (pid == 0) {
        for (int i = 0; i < 30000; i++) CHECK(syscall(SYS_getppid) >= 0);
        struct rlimit l;
        SYS(getrlimit(RLIMIT_AS, &l));
        CHECK(l.rlim_cur == 600 << 20 && l.rlim_max == 700 << 20);
        _exit(3);
    }
    print_end("child", pid);
    fflush(stdout);
    if (argc == 1) execl("/proc/self/exe", "again", "again", NULL);
    struct rlimit l;
    SYS(getrlimit(RLIMIT_FSIZE, &l));
    printf("%lu %lu\n", (unsigned long)l.rlim_cur, (unsigned long)l.rlim_max);
    return 0;
}
