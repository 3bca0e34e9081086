// warns
// known-failure: a private mapping does not see stores through a shared mapping of the same file in replay
// Mapped files: private and shared, writes through each side, truncation, offsets, msync, O_RDONLY rules, and a
// shared mapping between processes.
#include "check.h"
static const size_t page = 4096;
int main(void) {
    int fd = SYS(open("file", O_RDWR | O_CREAT | O_TRUNC, 0600));
    char block[4096];
    for (int i = 0; i < 8; i++) {
        memset(block, 'a' + i, page);
        CHECK(write(fd, block, page) == (ssize_t)page);
    }
    char *shared = SYS((char *)mmap(0, 8 * page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    char *private = SYS((char *)mmap(0, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, (off_t)(2 * page)));
    CHECK(private[0] == 'c' && shared[2 * page] == 'c');
    private[0] = 'P';
    CHECK(shared[2 * page] == 'c');
    shared[3 * page] = 'S';
    CHECK(private[page] == 'S'); // not yet copied
    CHECK(pwrite(fd, "W", 1, (off_t)(4 * page)) == 1);
    CHECK(shared[4 * page] == 'W' && private[2 * page] == 'W');
    CHECK(pread(fd, block, 1, (off_t)(3 * page)) == 1 && block[0] == 'S');
    char *alias = SYS((char *)mmap(0, page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)(3 * page)));
    alias[1] = 'A';
    CHECK(shared[3 * page + 1] == 'A');
    SYS(msync(shared, 8 * page, MS_SYNC));
    pid_t pid = SYS(fork());
    if (pid == 0) {
        private[1] = 'x';
        _exit(shared[0]);
    }
    print_end("child", pid);
    CHECK(private[1] == 'c');
    // Read into a mapping, write from one.
    SYS(lseek(fd, (off_t)(7 * page), SEEK_SET));
    CHECK(read(fd, private + 100, 50) == 50 && private[100] == 'h');
    CHECK(pwrite(fd, private, 3, 0) == 3 && shared[0] == 'P' && shared[1] == 'c');
    // Growing.
    SYS(ftruncate(fd, (off_t)(10 * page)));
    char *grown = SYS((char *)mremap(shared, 8 * page, 10 * page, MREMAP_MAYMOVE));
    CHECK(grown[9 * page] == 0);
    grown[10 * page - 1] = 'E';
    CHECK(pread(fd, block, 1, (off_t)(10 * page - 1)) == 1 && block[0] == 'E');
    // Read-only descriptors.
    int ro = SYS(open("file", O_RDONLY));
    CHECK(mmap(0, page, PROT_READ | PROT_WRITE, MAP_SHARED, ro, 0) == MAP_FAILED && errno == EACCES);
    char *copy = SYS((char *)mmap(0, page, PROT_READ | PROT_WRITE, MAP_PRIVATE, ro, 0));
    SYS(close(ro)); // the mapping outlives its descriptor
    copy[0] = 'z';
    CHECK(grown[0] == 'P');
    CHECK(mmap(0, page, PROT_READ, MAP_PRIVATE, fd, 100) == MAP_FAILED && errno == EINVAL);
    // The end of the last page reads as zeroes.
    int odd = SYS(open("odd", O_RDWR | O_CREAT, 0600));
    CHECK(write(odd, "short", 5) == 5);
    char *tail = SYS((char *)mmap(0, page, PROT_READ, MAP_PRIVATE, odd, 0));
    CHECK(memcmp(tail, "short\0\0", 7) == 0 && tail[page - 1] == 0);
    // Unlinked and still there.
    SYS(unlink("odd"));
    CHECK(tail[0] == 's');
    // /dev/zero shared, memfd through /proc/self/fd.
    int zero = SYS(open("/dev/zero", O_RDWR));
    char *z = SYS((char *)mmap(0, page, PROT_READ | PROT_WRITE, MAP_PRIVATE, zero, 0));
    CHECK(z[5] == 0);
    z[5] = 1;
    int mem = SYS(memfd_create("m", 0));
    SYS(ftruncate(mem, (off_t)page));
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", mem);
    int again = SYS(open(name, O_RDWR));
    char *m1 = SYS((char *)mmap(0, page, PROT_READ | PROT_WRITE, MAP_SHARED, mem, 0));
    char *m2 = SYS((char *)mmap(0, page, PROT_READ | PROT_WRITE, MAP_SHARED, again, 0));
    m1[9] = 9;
    CHECK(m2[9] == 9);
    printf("mapped files work: %016lx\n", hash_bytes(grown, 10 * page));
    return 0;
}
