// Shared memory with a name, mapped before and after exec and by a process that is not a child, read-only in one.
// varies
#include "share.h"
struct area {
    struct gate gate;
    _Atomic uint64_t ping, pong;
    char text[4096];
};
static char name[64];
static struct area *open_area(int flags, int prot, int create) {
    int fd = SYS(shm_open(name, flags | (create ? O_CREAT | O_EXCL : 0), 0600));
    if (create) SYS(ftruncate(fd, sizeof(struct area)));
    struct area *a = SYS(mmap(0, sizeof *a, prot, MAP_SHARED, fd, 0));
    close(fd);
    return a;
}
int main(int argc, char **argv) {
    unsigned spins = 0;
    enum { ROUNDS = 100 };
    if (argc > 2) {
        snprintf(name, sizeof name, "%s", argv[2]);
        struct area *a = open_area(O_RDWR, PROT_READ | PROT_WRITE, 0);
        const volatile struct area *r = open_area(O_RDONLY, PROT_READ, 0);
        uint64_t digest = 0;
        for (uint64_t i = 1; i <= ROUNDS; i++) {
            while (r->ping < i) par_relax(&spins);
            digest = mix(digest, r->ping + a->text[i]);
            a->pong = i;
        }
        CHECK(memcmp(a->text, "from the parent", 16) == 0);
        strcpy(a->text + 100, "from the child");
        printf("child %016lx %s\n", digest, (const char *)r->text + 100);
        return 0;
    }
    snprintf(name, sizeof name, "/crewind-test-%d-%ld", getpid(), (long)time(0));
    struct area *a = open_area(O_RDWR, PROT_READ | PROT_WRITE, 1);
    strcpy(a->text, "from the parent");
    pid_t pid = SYS(fork());
    if (pid == 0) {
        execl("/proc/self/exe", argv[0], "child", name, (char *)0);
        _exit(98);
    }
    uint64_t digest = 1;
    for (uint64_t i = 1; i <= ROUNDS; i++) {
        a->text[i + 20] = i;
        a->ping = i;
        while (a->pong < i) par_relax(&spins);
        digest = mix(digest, a->pong);
    }
    int status;
    SYS(waitpid(pid, &status, 0));
    SYS(shm_unlink(name));
    CHECK(status == 0 && strcmp(a->text + 100, "from the child") == 0);
    printf("parent %016lx\n", digest);
    return 0;
}
