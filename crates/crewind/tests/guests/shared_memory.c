// Memory shared between processes: what a child writes, its parent sees, in anonymous and in file mappings.
#include "check.h"
int main(void) {
    volatile int *anonymous = SYS((volatile int *)mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    int fd = SYS(open("file", O_RDWR | O_CREAT | O_TRUNC, 0600));
    SYS(ftruncate(fd, 4096));
    volatile int *file = SYS((volatile int *)mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    for (int round = 1; round <= 5; round++) {
        pid_t pid = SYS(fork());
        if (pid == 0) {
            anonymous[0] += round;
            file[0] = anonymous[0] * 2;
            _exit(0);
        }
        print_end("child", pid);
        printf("%d %d\n", anonymous[0], file[0]);
    }
    return 0;
}
