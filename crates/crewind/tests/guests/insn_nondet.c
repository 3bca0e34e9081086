// Instructions and calls whose results are not a function of the program's state: replay must repeat them.
// varies
// build: -O1 -mrdrnd -mrdseed
#include "check.h"
#include <cpuid.h>
#include <immintrin.h>
#include <sys/random.h>
#include <sys/sysinfo.h>
#include <sys/times.h>
#include <sys/utsname.h>
int main(void) {
    unsigned a, b, c, d;
    uint64_t before = __rdtsc(), after;
    unsigned aux;
    for (int i = 0; i < 100; i++) {
        after = __builtin_ia32_rdtscp(&aux);
        CHECK(after > before);
        before = after;
        if (i % 25 == 0) printf("tsc %lx aux %x\n", after, aux);
    }
    for (unsigned leaf = 0; leaf <= 7; leaf++) {
        __cpuid_count(leaf, 0, a, b, c, d);
        printf("cpuid %x: %x %x %x %x\n", leaf, a, b, c, d);
        // An independent second look gives the same (but for the id of the cpu in leaf 1).
        unsigned a2, b2, c2, d2;
        __cpuid_count(leaf, 0, a2, b2, c2, d2);
        CHECK(a == a2 && d == d2);
    }
    __cpuid_count(7, 0, a, b, c, d);
    printf("rtm %u pku %u\n", b >> 11 & 1, c >> 3 & 1);
    __cpuid_count(1, 0, a, b, c, d);
    if (c >> 30 & 1) {
        unsigned long long r = 0;
        int ok = 0;
        for (int i = 0; i < 10; i++) ok += _rdrand64_step(&r);
        unsigned short r16 = 0;
        ok += _rdrand16_step(&r16);
        CHECK(ok > 0);
        printf("rdrand %llx %x\n", r, r16);
    }
    unsigned char random[32];
    CHECK(getrandom(random, sizeof random, 0) == sizeof random);
    printf("getrandom %016lx\n", hash_bytes(random, sizeof random));
    struct timespec ts;
    for (int clock = 0; clock < 8; clock++)
        if (clock_gettime(clock, &ts) == 0) printf("clock %d: %ld.%09ld\n", clock, ts.tv_sec, ts.tv_nsec);
    struct timeval tv;
    gettimeofday(&tv, 0);
    struct tms tms;
    unsigned cpu, node;
    printf("time %ld %ld.%06ld times %ld getcpu %ld\n", time(0), tv.tv_sec, tv.tv_usec, (long)times(&tms), syscall(SYS_getcpu, &cpu, &node, 0));
    struct sysinfo si;
    SYS(sysinfo(&si));
    struct utsname name;
    SYS(uname(&name));
    struct rusage usage;
    SYS(getrusage(RUSAGE_SELF, &usage));
    printf("pid %d ppid %d tid %ld free %lu %s utime %ld\n", getpid(), getppid(), syscall(SYS_gettid), si.freeram, name.release, usage.ru_utime.tv_usec);
    printf("addresses: %p %p %p\n", (void *)&aux, (void *)main, malloc(10));
    int fd = SYS(open("/dev/urandom", O_RDONLY));
    CHECK(read(fd, random, 32) == 32);
    printf("urandom %016lx\n", hash_bytes(random, sizeof random));
    uint64_t bv;
    asm volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    bv = (uint64_t)d << 32 | a;
    printf("xcr0 has sse %d\n", (int)(bv >> 1 & 1));
    return 0;
}
