// Files that are mapped and written by calls: the mapping shows it, and the trace holds what was written, not all that
// is mapped (it has a limit in `written_mappings_stay_small`).
#include "check.h"
#include <sys/sendfile.h>
#define SIZE (16u << 20)
static unsigned char *map, *private_map;
static uint64_t sum(const unsigned char *p, size_t n) {
    uint64_t h = 1469598103934665603u;
    for (size_t i = 0; i < n; i += 61) h = (h ^ p[i]) * 1099511628211u;
    return h;
}
static void show(const char *what) {
    printf("%s %016llx %016llx\n", what, (unsigned long long)sum(map, SIZE), (unsigned long long)sum(private_map, SIZE));
}
int main(void) {
    static char block[4096];
    int fd = SYS(open("data", O_RDWR | O_CREAT, 0600));
    SYS(ftruncate(fd, SIZE));
    map = SYS(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    private_map = SYS(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
    unsigned random = 1;
    for (int i = 0; i < 500; i++) {
        random = random * 1103515245u + 12345u;
        memset(block, i, sizeof block);
        CHECK(pwrite(fd, block, sizeof block, (random >> 4) % (SIZE - sizeof block)) == sizeof block);
        if (i % 100 == 0) private_map[i * 5000] = 77;
    }
    show("pwrite");
    SYS(lseek(fd, 12345, SEEK_SET));
    for (int i = 0; i < 100; i++) CHECK(write(fd, block + i, 1000) == 1000);
    show("write");
    struct iovec parts[2] = {{block, 10}, {block + 50, 3000}};
    CHECK(writev(fd, parts, 2) == 3010);
    CHECK(pwritev(fd, parts, 2, 999999) == 3010);
    CHECK(pwritev2(fd, parts, 2, 2999999, 0) == 3010);
    CHECK(pwritev2(fd, parts, 2, -1, 0) == 3010);
    show("vectors");
    int second = SYS(open("data", O_RDWR | O_APPEND));
    SYS(ftruncate(fd, SIZE - 10000));
    memset(block, 0xab, sizeof block);
    CHECK(write(second, block, 2000) == 2000);
    CHECK(pwrite(second, block, 3000, 5) == 3000);
    SYS(ftruncate(fd, SIZE));
    show("append");
    int other = SYS(open("other", O_RDWR | O_CREAT, 0600));
    memset(block, 0x5c, sizeof block);
    CHECK(write(other, block, sizeof block) == sizeof block);
    off_t from = 0;
    SYS(lseek(fd, 7000000, SEEK_SET));
    CHECK(sendfile(fd, other, &from, 4000) == 4000);
    int pair[2];
    SYS(pipe(pair));
    CHECK(write(pair[1], block, 500) == 500);
    loff_t to = 9000000;
    CHECK(splice(pair[0], NULL, fd, &to, 500, 0) == 500 && to == 9000500);
    loff_t a = 0, b = 11000000;
    CHECK(syscall(SYS_copy_file_range, other, &a, fd, &b, 4096, 0) == 4096);
    show("copied");
    int holes = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4096 * 100, 4096 * 5);
    CHECK(holes == 0 || errno == EOPNOTSUPP);
    memset(map + 4096 * 100, 0, 4096 * 5);
    show("hole");
    SYS(truncate("data", SIZE / 2));
    SYS(truncate("data", SIZE));
    show("path");
    puts("done");
    return 0;
}
