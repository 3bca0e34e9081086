// What the twin has to be told in different ways: system calls with results in memory, mappings that come, move and
// go, faults that the runtime repairs, signals, a vfork child, instructions that leave translated code. In between,
// arithmetic of every kind.
#define _GNU_SOURCE
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(x) do { if (!(x)) { printf("line %d: %s\n", __LINE__, #x); exit(1); } } while (0)

static volatile int seen;
static sigjmp_buf back;

static void on_signal(int sig) { seen += sig; }
static void on_fault(int sig) { siglongjmp(back, sig); }

static void numbers(void)
{
    double s = 0;
    long double l = 1;
    float f = 0.5f;
    for (int i = 1; i < 100; i++) {
        s += sin(i) * sqrt(i);
        l = l * 1.0001L + i;
        f = f / 3 + 0.1f * i;
    }
    CHECK(s == s && l > 4000 && f > 1);
}

static void strings(void)
{
    static char a[4096], b[8192];
    memset(a, 'x', sizeof a - 1);
    char *to = b;
    const char *from = a;
    long n = sizeof a, left = -1;
    __asm__ volatile("cld; rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
    CHECK(n == 0 && strcmp(a, b) == 0);
    to = b;
    __asm__ volatile("repne scasb" : "+c"(left), "+D"(to) : "a"(0) : "memory", "cc");
    CHECK(to == b + sizeof a);
    unsigned long flags;
    __asm__ volatile("pushfq; pop %0" : "=r"(flags) : : "memory");
    CHECK((flags & 0x100) == 0);
    // A fault in the middle of a repetition.
    char *p = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(mprotect(p + 4096, 4096, PROT_NONE) == 0);
    if (sigsetjmp(back, 1) == 0) {
        to = p;
        n = 8192;
        __asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(7) : "memory");
        CHECK(0);
    }
    CHECK(p[4095] == 7 && munmap(p, 8192) == 0);
}

static void memory(void)
{
    char *p = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    strcpy(p + 100, "moved");
    p = mremap(p, 65536, 1 << 20, MREMAP_MAYMOVE);
    CHECK(strcmp(p + 100, "moved") == 0 && p[(1 << 20) - 1] == 0);
    CHECK(madvise(p, 4096, MADV_DONTNEED) == 0 && p[100] == 0);
    int fd = open("/proc/self/exe", O_RDONLY);
    CHECK(read(fd, p, 1000) == 1000);
    char *q = mmap(0, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
    CHECK(memcmp(p, q, 1000) == 0);
    // Code that is written, executed, and written again.
    unsigned char code[] = {0xb8, 1, 0, 0, 0, 0xc3};
    char *c = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < 5; i++) {
        code[1] = i;
        memcpy(c, code, sizeof code);
        CHECK(((int (*)(void))c)() == i);
    }
}

int main(void)
{
    struct sigaction act = {.sa_handler = on_signal};
    sigaction(SIGUSR1, &act, 0);
    act.sa_handler = on_fault;
    sigaction(SIGSEGV, &act, 0);
    numbers();
    strings();
    memory();
    raise(SIGUSR1);
    CHECK(seen == SIGUSR1);
    unsigned lo, hi;
    __asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
    volatile int shared = 1;
    pid_t child = vfork();
    if (child == 0) {
        shared = 2;
        _exit(3);
    }
    int status;
    CHECK(shared == 2 && waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 3);
    child = fork();
    if (child == 0) {
        numbers();
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    numbers();
    puts("ok");
    return 0;
}
