// Pipes and sockets between processes: stream, datagram, seqpacket, loopback TCP and UDP, descriptors and
// credentials in messages, names, options, shutdown.
#include "check.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/un.h>
static void send_fd(int to, int fd) {
    char byte = 'f', control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec iov = {&byte, 1};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
    CHECK(sendmsg(to, &msg, 0) == 1);
}
static int receive_fd(int from, struct ucred *who) {
    char byte, control[256];
    struct iovec iov = {&byte, 1};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    CHECK(recvmsg(from, &msg, MSG_CMSG_CLOEXEC) == 1 && byte == 'f');
    int fd = -1;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
        if (c->cmsg_type == SCM_RIGHTS) memcpy(&fd, CMSG_DATA(c), sizeof fd);
        if (c->cmsg_type == SCM_CREDENTIALS) memcpy(who, CMSG_DATA(c), sizeof *who);
    }
    return fd;
}
int main(void) {
    // A pipe between processes, read in pieces.
    int p[2];
    SYS(pipe2(p, O_CLOEXEC));
    pid_t pid = SYS(fork());
    if (pid == 0) {
        close(p[0]);
        for (int i = 0; i < 1000; i++) {
            char line[32];
            int n = snprintf(line, sizeof line, "line %d\n", i);
            CHECK(write(p[1], line, (size_t)n) == n);
        }
        _exit(0);
    }
    close(p[1]);
    static char all[20000];
    size_t total = 0;
    ssize_t n;
    while ((n = read(p[0], all + total, 700)) > 0) total += (size_t)n;
    printf("pipe: %zu bytes, %016lx\n", total, hash_bytes(all, total));
    print_end("writer", pid);
    // A descriptor and credentials through a socket pair.
    int s[2], one = 1;
    SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    SYS(setsockopt(s[0], SOL_SOCKET, SO_PASSCRED, &one, sizeof one));
    pid = SYS(fork());
    if (pid == 0) {
        int fd = SYS(open("passed", O_RDWR | O_CREAT, 0600));
        CHECK(write(fd, "from the child", 14) == 14);
        send_fd(s[1], fd);
        _exit(0);
    }
    struct ucred who = {0};
    int fd = receive_fd(s[0], &who);
    print_end("sender", pid);
    CHECK(who.pid == pid && who.uid == getuid());
    CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC);
    char text[64] = {0};
    CHECK(pread(fd, text, 63, 0) == 14);
    printf("through the passed descriptor: %s\n", text);
    // Seqpacket keeps borders; MSG_PEEK, MSG_TRUNC.
    SYS(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, s));
    CHECK(send(s[0], "first", 5, 0) == 5 && send(s[0], "second", 6, 0) == 6);
    CHECK(recv(s[1], text, 3, MSG_PEEK | MSG_TRUNC) == 5);
    CHECK(recv(s[1], text, 64, 0) == 5 && recv(s[1], text, 64, 0) == 6);
    FAILS(recv(s[1], text, 64, MSG_DONTWAIT), EAGAIN);
    SYS(shutdown(s[0], SHUT_WR));
    CHECK(recv(s[1], text, 64, 0) == 0);
    // Unix datagrams with addresses.
    int d1 = SYS(socket(AF_UNIX, SOCK_DGRAM, 0)), d2 = SYS(socket(AF_UNIX, SOCK_DGRAM, 0));
    struct sockaddr_un u1 = {AF_UNIX, "d1"}, u2 = {AF_UNIX, "d2"}, from;
    SYS(bind(d1, (struct sockaddr *)&u1, sizeof u1));
    SYS(bind(d2, (struct sockaddr *)&u2, sizeof u2));
    CHECK(sendto(d1, "datagram", 8, 0, (struct sockaddr *)&u2, sizeof u2) == 8);
    socklen_t len = sizeof from;
    CHECK(recvfrom(d2, text, 64, 0, (struct sockaddr *)&from, &len) == 8);
    printf("datagram from %s, %d bytes of address\n", from.sun_path, (int)len > 2);
    // TCP over loopback.
    int listener = SYS(socket(AF_INET, SOCK_STREAM, 0));
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    SYS(bind(listener, (struct sockaddr *)&in, sizeof in));
    SYS(listen(listener, 5));
    len = sizeof in;
    SYS(getsockname(listener, (struct sockaddr *)&in, &len));
    CHECK(in.sin_port != 0);
    pid = SYS(fork());
    if (pid == 0) {
        int c = SYS(socket(AF_INET, SOCK_STREAM, 0));
        SYS(connect(c, (struct sockaddr *)&in, sizeof in));
        for (int i = 0; i < 100; i++) CHECK(send(c, "hundred times ", 14, 0) == 14);
        SYS(shutdown(c, SHUT_WR));
        CHECK(recv(c, text, 5, MSG_WAITALL) == 5 && memcmp(text, "reply", 5) == 0);
        _exit(0);
    }
    struct sockaddr_in peer;
    len = sizeof peer;
    int c = SYS(accept4(listener, (struct sockaddr *)&peer, &len, SOCK_CLOEXEC));
    CHECK(ntohl(peer.sin_addr.s_addr) == INADDR_LOOPBACK);
    SYS(setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one));
    int value = 0;
    len = sizeof value;
    SYS(getsockopt(c, IPPROTO_TCP, TCP_NODELAY, &value, &len));
    CHECK(value);
    total = 0;
    while ((n = recv(c, all, sizeof all, 0)) > 0) total += (size_t)n;
    CHECK(send(c, "reply", 5, 0) == 5);
    printf("tcp: %zu bytes\n", total);
    print_end("client", pid);
    // UDP, sendmmsg and recvmmsg.
    int u = SYS(socket(AF_INET, SOCK_DGRAM, 0)), v = SYS(socket(AF_INET, SOCK_DGRAM, 0));
    in.sin_port = 0;
    SYS(bind(u, (struct sockaddr *)&in, sizeof in));
    len = sizeof in;
    SYS(getsockname(u, (struct sockaddr *)&in, &len));
    SYS(connect(v, (struct sockaddr *)&in, sizeof in));
    struct iovec iov[2] = {{"one", 3}, {"three", 5}};
    struct mmsghdr mm[2] = {{.msg_hdr = {.msg_iov = &iov[0], .msg_iovlen = 1}}, {.msg_hdr = {.msg_iov = &iov[1], .msg_iovlen = 1}}};
    CHECK(sendmmsg(v, mm, 2, 0) == 2 && mm[1].msg_len == 5);
    char b1[16], b2[16];
    struct iovec riov[2] = {{b1, 16}, {b2, 16}};
    mm[0].msg_hdr.msg_iov = &riov[0];
    mm[1].msg_hdr.msg_iov = &riov[1];
    CHECK(recvmmsg(u, mm, 2, 0, 0) == 2 && mm[0].msg_len == 3 && mm[1].msg_len == 5 && memcmp(b2, "three", 5) == 0);
    in.sin_port = htons(1);
    int refused = SYS(socket(AF_INET, SOCK_STREAM, 0));
    FAILS(connect(refused, (struct sockaddr *)&in, sizeof in), ECONNREFUSED);
    puts("sockets work");
    return 0;
}
