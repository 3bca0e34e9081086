// Files opened with O_DIRECT, whose buffers must be aligned, while other threads run: databases do this.
#include "check.h"
#include <pthread.h>
#include <sys/uio.h>
static void *waits(void *arg) {
    pause();
    return arg;
}
int main(void) {
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, waits, NULL) == 0);
    int fd = open("direct", O_RDWR | O_CREAT | O_TRUNC | O_DIRECT, 0600);
    // Some file systems cannot.
    if (fd < 0) fd = SYS(open("direct", O_RDWR | O_CREAT | O_TRUNC, 0600));
    char *buffer = aligned_alloc(4096, 1 << 16);
    for (int i = 0; i < 1 << 16; i++) buffer[i] = (char)(i / 512);
    CHECK(pwrite(fd, buffer, 1 << 16, 0) == 1 << 16);
    memset(buffer, 0, 1 << 16);
    CHECK(pread(fd, buffer, 12288, 4096) == 12288 && buffer[0] == 8 && buffer[12287] == 31);
    CHECK(pread(fd, buffer + 8192, 4096, 0) == 4096 && buffer[8192] == 0 && buffer[8192 + 4095] == 7);
    struct iovec parts[2] = {{buffer + 4096, 4096}, {buffer + 16384, 8192}};
    CHECK(preadv(fd, parts, 2, 8192) == 12288 && buffer[4096] == 16 && buffer[16384 + 8191] == 39);
    CHECK(pwritev(fd, parts, 2, 0) == 12288);
    CHECK(lseek(fd, 0, SEEK_SET) == 0 && read(fd, buffer, 8192) == 8192 && buffer[0] == 16);
    printf("read and written past the cache\n");
    return 0;
}
