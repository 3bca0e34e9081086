// A file that two processes map at three places and write with system calls; it grows; parts are unmapped, moved and
// varies
// mapped again.
#include "share.h"
enum { SIZE = 5 * PAGE };
static volatile unsigned char *p, *q;
static int fd;
static volatile uint64_t *step;
static void wait_for(uint64_t n) {
    unsigned spins = 0;
    while (*step < n) par_relax(&spins);
}
static uint64_t sum(volatile unsigned char *at, size_t len) {
    uint64_t digest = 7;
    for (size_t i = 0; i < len; i++) digest = mix(digest, at[i]);
    return digest;
}
static uint64_t work(int number) {
    uint64_t digest = number;
    if (number) {
        // Its own view, of a file opened again.
        int own = SYS(open("file", O_RDWR));
        volatile unsigned char *r = SYS(mmap(0, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, own, 0));
        wait_for(1);
        CHECK(r[10] == 10 && p[10] == 10 && q[10 - 0] == 0);
        digest = mix(digest, sum(r, PAGE));
        SYS(pwrite(own, "written", 7, PAGE + 100));
        r[20] = 99;
        *step = 2;
        wait_for(3);
        CHECK(r[4 * PAGE + 5] == 45);
        digest = mix(digest, sum(r + PAGE, 4 * PAGE));
        *step = 4;
        for (int i = 0; i < 500; i++) {
            r[i % PAGE] += 3;
            digest = mix(digest, r[(i * 7) % PAGE]);
        }
        SYS(munmap((void *)r, SIZE));
        *step = 5;
        return digest;
    }
    p[10] = 10;
    *step = 1;
    wait_for(2);
    CHECK(memcmp((char *)p + PAGE + 100, "written", 7) == 0 && memcmp((char *)q + 100, "written", 7) == 0);
    CHECK(p[20] == 99);
    // The same memory at two addresses.
    for (int i = 0; i < 100; i++) {
        q[200 + i] = i;
        CHECK(p[PAGE + 200 + i] == i);
        p[PAGE + 200 + i]++;
        CHECK(q[200 + i] == i + 1);
    }
    SYS(ftruncate(fd, SIZE));
    p[4 * PAGE + 5] = 45;
    char back[8];
    SYS(pread(fd, back, 8, 4 * PAGE));
    CHECK(back[5] == 45);
    SYS(pread(fd, (void *)(p + 300), 16, 4 * PAGE));
    CHECK(p[305] == 45);
    *step = 3;
    wait_for(4);
    for (int i = 0; i < 500; i++) {
        p[i % PAGE] ^= i;
        digest = mix(digest, p[(i * 11) % PAGE]);
    }
    volatile unsigned char *m =
        SYS(mremap((void *)q, PAGE, 2 * PAGE, MREMAP_MAYMOVE));
    q = m;
    digest = mix(digest, sum(q, 2 * PAGE));
    SYS(mprotect((void *)q, PAGE, PROT_READ));
    digest = mix(digest, q[7]);
    SYS(munmap((void *)(p + 2 * PAGE), PAGE));
    wait_for(5);
    digest = mix(digest, sum(p, 2 * PAGE));
    digest = mix(digest, sum(p + 3 * PAGE, 2 * PAGE));
    SYS(mmap((void *)p, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
    CHECK(p[10] == 0);
    p[10] = 1;
    return digest;
}
int main(void) {
    fd = SYS(open("file", O_RDWR | O_CREAT | O_TRUNC, 0600));
    SYS(ftruncate(fd, 2 * PAGE));
    p = SYS(mmap(0, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    q = SYS(mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, PAGE));
    step = share(PAGE);
    // Two mappings that make one, the second half first.
    volatile unsigned char *w = SYS(mmap(0, 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    SYS(mmap((void *)(w + PAGE), PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, PAGE));
    w[PAGE + 900] = 1;
    SYS(mmap((void *)w, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0));
    w[900] = 2;
    CHECK(w[PAGE + 900] == 1 && p[PAGE + 900] == 1 && p[900] == 2);
    in_processes(2, work);
    return 0;
}
