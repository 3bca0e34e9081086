/* Every call where it does not belong, and what it returns: prints one line each. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "crewind.h"

extern char **environ;

#define SHOW(e) printf("%s: %ld\n", #e, (long)(e))

static void *step(void *arg)
{
    long ret = 0;
    for (long i = 0; i < (long)arg; i++)
        ret = rec_owner();
    return (void *)ret;
}

static long in_thread(long n)
{
    pthread_t t;
    void *ret;
    if (pthread_create(&t, NULL, step, (void *)n))
        exit(2);
    pthread_join(t, &ret);
    return (long)ret;
}

static long raw(long number, long a)
{
    return syscall(number, a, 0) < 0 ? -errno : 0;
}

static long count(const struct recording *list)
{
    long n = 0;
    for (; list; list = list->next)
        n++;
    return n;
}

int main(void)
{
    struct recording a = {0}, b = {0}, buffer[2];
    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("nothing is on");
    SHOW(stop_rec());
    SHOW(stop_rep());
    SHOW(rec_owner());
    SHOW(start_rep(NULL));
    SHOW(start_rep((void *)16));
    SHOW(raw(0xc3e001, 7));
    SHOW(raw(0xc3e002, 7));
    puts("recording");
    SHOW(start_rec(&a));
    SHOW(start_rec(&a));
    SHOW(start_rep(&a));
    SHOW(stop_rep());
    SHOW(rec_owner());
    SHOW(in_thread(2));
    pid_t child = fork();
    if (child == 0)
        _exit(rec_owner() == -EINVAL ? 7 : 8);
    int status;
    waitpid(child, &status, 0);
    SHOW(WEXITSTATUS(status));
    char *words[] = {"true", NULL};
    SHOW(posix_spawnp(&child, "true", NULL, NULL, words, environ));
    waitpid(child, &status, 0);
    SHOW(WEXITSTATUS(status));
    SHOW(posix_spawnp(&child, "/nonexistent", NULL, NULL, words, environ));
    SHOW(stop_rec());
    SHOW(stop_rec());
    SHOW(count(a.next));
    puts("replaying");
    SHOW(start_rep(&a));
    SHOW(start_rep(&a));
    SHOW(start_rec(&b));
    SHOW(stop_rec());
    SHOW(rec_owner());
    SHOW(rec_owner());
    SHOW(stop_rep());
    SHOW(start_rep(&a));
    SHOW(in_thread(3));
    SHOW(stop_rep());
    puts("lists");
    rec_set_buffer(buffer, 2);
    SHOW(start_rec(&b));
    SHOW(in_thread(3));
    SHOW(stop_rec());
    SHOW(count(b.next));
    SHOW(start_rep(&b));
    SHOW(in_thread(3));
    SHOW(stop_rep());
    SHOW(rec_list((void *)8));
    buffer[1].next = buffer;
    SHOW(start_rep(&b));
    return 0;
}
