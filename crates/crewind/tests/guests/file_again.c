// Files that are read again and again, and change meanwhile: in place, in length, behind the reader's back.
#include "check.h"
enum { SIZE = 300000, PIECE = 16384 };
static char still[PIECE];
static unsigned hash(unsigned h, const char *p, long n) {
    for (long i = 0; i < n; i++) h = (h ^ (unsigned char)p[i]) * 16777619u;
    return h;
}
static unsigned through(int fd, char *buffer) {
    unsigned h = 1;
    long n;
    SYS(lseek(fd, 0, SEEK_SET));
    while ((n = SYS(read(fd, buffer, PIECE))) > 0) h = hash(h, buffer, n);
    return h;
}
int main(void) {
    char *content = malloc(SIZE), *buffer = malloc(PIECE);
    for (int i = 0; i < SIZE; i++) content[i] = (char)(i * 7 + i / 251);
    int fd = SYS(open("again", O_RDWR | O_CREAT | O_TRUNC, 0600));
    CHECK(write(fd, content, SIZE) == SIZE);
    for (int i = 0; i < 4; i++) printf("whole %u %u\n", through(fd, buffer), through(fd, still));
    // One byte, then the same length again.
    CHECK(pwrite(fd, "X", 1, SIZE / 2) == 1);
    for (int i = 0; i < 4; i++) printf("changed %u\n", through(fd, buffer));
    // Changes while it is read, in front of the reader and behind.
    for (int i = 0; i < 6; i++) {
        unsigned h = 1;
        for (long at = 0; at < SIZE; at += PIECE) {
            long n = SYS(pread(fd, buffer, PIECE, at));
            h = hash(h, buffer, n);
            char c = (char)(i + at / PIECE);
            if (i % 2) CHECK(pwrite(fd, &c, 1, (at * 3 + i) % SIZE) == 1);
        }
        printf("meanwhile %u\n", h);
    }
    CHECK(pwrite(fd, content, SIZE, SIZE) == SIZE);
    for (int i = 0; i < 3; i++) printf("longer %u\n", through(fd, buffer));
    SYS(ftruncate(fd, 100000));
    for (int i = 0; i < 3; i++) printf("shorter %u\n", through(fd, buffer));
    // Another process moves the position.
    fflush(stdout);
    pid_t pid = SYS(fork());
    unsigned h = 1;
    for (int i = 0; i < 40; i++) {
        SYS(lseek(fd, i * 1000, SEEK_SET));
        h = hash(h, buffer, SYS(pread(fd, buffer, PIECE, i * 2000)));
    }
    if (pid == 0) {
        printf("child %u\n", h);
        fflush(stdout);
        _exit(0);
    }
    print_end("child", pid);
    // Into memory with a hole in it.
    char *p = SYS(mmap(0, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    SYS(munmap(p + 8192, 4096));
    for (int i = 0; i < 3; i++) {
        long n = pread(fd, p, PIECE, 5);
        printf("hole %ld %u\n", n, n > 0 ? hash(1, p, n) : 0);
    }
    printf("parent %u\n", h);
    return 0;
}
