// Large and scattered transfers: megabytes through pipes and files, readv, sendfile, splice, tee, vmsplice, zero
// lengths, partial and invalid buffers.
// build: -O1 -Wno-stringop-overread -Wno-stringop-overflow
#include "check.h"
#include <sys/sendfile.h>
int main(void) {
    size_t size = 20 << 20;
    unsigned char *data = malloc(size), *back = malloc(size);
    uint64_t state = 99;
    for (size_t i = 0; i < size; i += 8) {
        uint64_t v = next_random(&state);
        memcpy(data + i, &v, 8);
    }
    int fd = SYS(open("big", O_RDWR | O_CREAT, 0600));
    CHECK(write(fd, data, size) == (ssize_t)size);
    CHECK(pread(fd, back, size, 0) == (ssize_t)size && memcmp(data, back, size) == 0);
    int p[2];
    SYS(pipe(p));
    pid_t pid = SYS(fork());
    if (pid == 0) {
        close(p[0]);
        size_t sent = 0;
        while (sent < size) sent += (size_t)SYS(write(p[1], data + sent, size - sent));
        _exit(0);
    }
    close(p[1]);
    size_t got = 0;
    ssize_t n;
    while ((n = read(p[0], back + got, size - got)) > 0) got += (size_t)n;
    CHECK(got == size && memcmp(data, back, size) == 0);
    print_end("writer", pid);
    struct iovec iov[IOV_MAX];
    for (int i = 0; i < IOV_MAX; i++) iov[i] = (struct iovec){back + (size_t)i * 1000, 777};
    SYS(lseek(fd, 0, SEEK_SET));
    CHECK(readv(fd, iov, IOV_MAX) == IOV_MAX * 777L);
    for (int i = 0; i < IOV_MAX; i++) CHECK(memcmp(back + (size_t)i * 1000, data + (size_t)i * 777, 777) == 0);
    FAILS(readv(fd, iov, IOV_MAX + 1), EINVAL);
    int out = SYS(open("copy", O_RDWR | O_CREAT, 0600));
    off_t at = 100;
    CHECK(sendfile(out, fd, &at, 1 << 20) == 1 << 20 && at == 100 + (1 << 20));
    loff_t from = 5;
    CHECK(copy_file_range(fd, &from, out, 0, 100000, 0) == 100000);
    SYS(pipe(p));
    from = 0;
    CHECK(splice(fd, &from, p[1], 0, 4096, 0) == 4096);
    int q[2];
    SYS(pipe(q));
    CHECK(tee(p[0], q[1], 4096, 0) == 4096);
    CHECK(read(p[0], back, 4096) == 4096 && memcmp(back, data, 4096) == 0);
    CHECK(read(q[0], back, 4096) == 4096 && memcmp(back, data, 4096) == 0);
    struct iovec one = {data, 4096};
    CHECK(vmsplice(p[1], &one, 1, 0) == 4096);
    CHECK(splice(p[0], 0, out, 0, 4096, 0) == 4096);
    CHECK(read(fd, back, 0) == 0 && write(fd, 0, 0) == 0);
    FAILS(read(fd, (void *)8, 10), EFAULT);
    FAILS(write(p[1], (void *)8, 10), EFAULT);
    // A buffer whose second page is missing: what fits is transferred.
    char *pages = SYS((char *)mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    SYS(munmap(pages + 4096, 4096));
    SYS(lseek(fd, 0, SEEK_SET));
    CHECK(write(p[1], data, 8000) == 8000);
    n = read(p[0], pages + 4096 - 100, 200);
    printf("read into a hole: %s\n", n == 100 || (n == -1 && errno == EFAULT) ? "part or EFAULT" : "?");
    SYS(ftruncate(fd, 3));
    SYS(lseek(fd, 0, SEEK_SET));
    CHECK(read(fd, back, 100) == 3 && read(fd, back, 100) == 0);
    CHECK(pread(out, back, 1 << 20, 0) == 1 << 20);
    printf("copy: %016lx\n", hash_bytes(back, 1 << 20));
    // Much output, to standard output itself.
    for (int i = 0; i < 20000; i++) printf("line %d of much output\n", i);
    fflush(stdout);
    struct iovec lines[2] = {{"written with ", 13}, {"writev\n", 7}};
    CHECK(writev(1, lines, 2) == 20);
    return 0;
}
