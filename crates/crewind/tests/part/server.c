/* A server with four threads that race on a number without a lock, and count under one. Argument: a file to write the
 * port to. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long served;
static volatile long racy;
static int listener;

static void *worker(void *arg)
{
    long me = (long)arg;
    char buf[256];
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0)
            return NULL;
        for (;;) {
            ssize_t n = read(fd, buf, sizeof buf);
            if (n <= 0)
                break;
            racy = racy * 3 + me;
            pthread_mutex_lock(&lock);
            served++;
            long now = served;
            pthread_mutex_unlock(&lock);
            unsigned long hash = 5381;
            for (int k = 0; k < 2000; k++)
                hash = hash * 33 + (unsigned char)buf[k % n];
            int m = snprintf(buf, sizeof buf, "%ld %lx\n", now, hash);
            if (write(fd, buf, (size_t)m) != m)
                break;
        }
        close(fd);
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    listener = socket(AF_INET, SOCK_STREAM, 0);
    if (argc < 2 || bind(listener, (void *)&a, sizeof a) || listen(listener, 64) ||
        getsockname(listener, (void *)&a, &len))
        return 1;
    char name[4096];
    snprintf(name, sizeof name, "%s.new", argv[1]);
    FILE *f = fopen(name, "w");
    if (f == NULL)
        return 1;
    fprintf(f, "%d\n", ntohs(a.sin_port));
    fclose(f);
    rename(name, argv[1]);
    pthread_t t;
    for (long i = 1; i < 4; i++)
        pthread_create(&t, NULL, worker, (void *)i);
    worker(NULL);
    return 0;
}
