// System calls that write into memory which other threads write, and read from memory which they change: what the kernel took and
// what it left must come out again. Readers of the pipes see what was written, byte for byte.
// varies
#include "par.h"
#include <sys/random.h>
#include <sys/sysinfo.h>
static unsigned char shared[3 * PAGE] __attribute__((aligned(4096)));
static int zero, memory_file;
static uint64_t body(int me) {
    uint64_t seen = (uint64_t)me, state = (uint64_t)me * 5 + 11;
    int fds[2], sockets[2];
    SYS(pipe2(fds, O_NONBLOCK));
    SYS(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, sockets));
    unsigned char back[1024];
    for (int i = 0; i < par_rounds; i++) {
        uint64_t r = next_random(&state);
        // Pieces lie in one page or over a border.
        unsigned char *a = shared + (r & 64 ? PAGE - (r >> 8) % 500 : (r >> 8) % (2 * PAGE)), *b = shared + (r >> 24) % (2 * PAGE);
        size_t size = 1 + (r >> 40) % 600, half = size / 2;
        struct iovec two[2] = {{a, half}, {b, size - half}};
        struct msghdr message = {.msg_iov = two, .msg_iovlen = 2};
        ssize_t n = 0, m = 0;
        switch (r % 12) {
        case 0: n = write(fds[1], a, size); m = read(fds[0], back, sizeof back); CHECK(n == m); break;
        case 1: n = writev(fds[1], two, 2); m = read(fds[0], back, sizeof back); CHECK(n == m); break;
        case 2: CHECK(write(fds[1], &seen, 8) == 8); n = read(fds[0], a, size); while (read(fds[0], back, sizeof back) > 0) continue; break;
        case 3: memset(back, (int)r, size); CHECK(write(fds[1], back, size) == (ssize_t)size); n = readv(fds[0], two, 2); CHECK(n == (ssize_t)size); break;
        case 4: n = sendmsg(sockets[0], &message, 0); m = recv(sockets[1], back, sizeof back, 0); CHECK(n == m); break;
        case 5: memset(back, (int)r >> 3, size); CHECK(send(sockets[0], back, size, 0) == (ssize_t)size); n = recvmsg(sockets[1], &message, 0); CHECK(n == (ssize_t)size); break;
        case 6: n = getrandom(a, size > 256 ? 256 : size, 0); break;
        case 7: n = clock_gettime(CLOCK_MONOTONIC, (struct timespec *)(void *)a); break;
        case 8: n = pread(zero, a, size, 0); break;
        case 9: n = pwrite(memory_file, a, size, (off_t)(r >> 50) % 4000); m = pread(memory_file, b, half, (off_t)(r >> 52) % 4000); break;
        case 10: n = getcwd((char *)b, 256) ? 1 : -1; break;
        default: n = sysinfo((struct sysinfo *)(void *)a);
        }
        seen = mix(seen, (uint64_t)n * 7 + (uint64_t)m);
        if (m > 0 && r % 12 != 9) seen = mix(seen, hash_bytes(back, (size_t)m));
        seen = mix(seen, *(volatile uint64_t __attribute__((aligned(1))) *)b);
        for (int k = 0; k < 30; k++) {
            a[k * 11 % 200] += (unsigned char)k;
            ((volatile unsigned char *)b)[k * 7] ^= (unsigned char)seen;
        }
    }
    close(fds[0]), close(fds[1]), close(sockets[0]), close(sockets[1]);
    return seen;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 2, 2500);
    zero = SYS(open("/dev/zero", O_RDONLY));
    memory_file = SYS(memfd_create("file", 0));
    SYS(ftruncate(memory_file, 8192));
    par_run("seen", body);
    printf("%016lx\n", hash_bytes(shared, sizeof shared));
    return 0;
}
