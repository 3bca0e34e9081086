// What /proc tells about the program: it must show the program, not what runs it.
// args: arg1 arg2
#include "check.h"
#include <dirent.h>
static char buffer[200000];
static size_t slurp(const char *path) {
    int fd = SYS(open(path, O_RDONLY));
    size_t total = 0;
    ssize_t n;
    while ((n = read(fd, buffer + total, sizeof buffer - 1 - total)) > 0) total += (size_t)n;
    buffer[total] = 0;
    close(fd);
    return total;
}
int main(int argc, char **argv) {
    char exe[PATH_MAX] = {0}, again[PATH_MAX] = {0};
    CHECK(argc == 3);
    SYS(readlink("/proc/self/exe", exe, sizeof exe - 1));
    CHECK(strcmp(strrchr(exe, '/'), "/proc_self") == 0);
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/exe", getpid());
    SYS(readlink(path, again, sizeof again - 1));
    CHECK(strcmp(exe, again) == 0);
    int fd = SYS(open("/proc/self/exe", O_RDONLY));
    CHECK(read(fd, buffer, 4) == 4 && memcmp(buffer, "\177ELF", 4) == 0);
    struct stat a, b;
    SYS(fstat(fd, &a));
    SYS(stat(exe, &b));
    CHECK(a.st_ino == b.st_ino);
    close(fd);
    size_t n = slurp("/proc/self/cmdline");
    CHECK(strcmp(buffer, argv[0]) == 0 && strcmp(buffer + strlen(buffer) + 1, "arg1") == 0);
    printf("cmdline %d\n", n == strlen(argv[0]) + 1 + 5 + 5);
    slurp("/proc/self/comm");
    CHECK(strcmp(buffer, "proc_self\n") == 0);
    n = slurp("/proc/self/environ");
    CHECK(memmem(buffer, n, "PATH=", 5));
    slurp("/proc/self/stat");
    CHECK(atoi(buffer) == getpid() && strstr(buffer, "(proc_self)"));
    slurp("/proc/self/status");
    CHECK(strncmp(buffer, "Name:\tproc_self\n", 16) == 0);
    slurp("/proc/self/limits");
    CHECK(strstr(buffer, "Max open files"));
    // maps: every object of ours is there once, in order, without overlap; nothing of the runtime's.
    static int in_data = 1;
    int on_stack;
    void *on_heap = malloc(10);
    void *mapped = SYS(mmap(0, 12345, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    slurp("/proc/self/maps");
    CHECK(!strstr(buffer, "crewind"));
    struct {
        const char *what;
        uintptr_t address;
        const char *prot;
        int found;
    } wanted[] = {{"code", (uintptr_t)main, "r-xp", 0},
                  {"data", (uintptr_t)&in_data, "rw-p", 0},
                  {"stack", (uintptr_t)&on_stack, "rw-p", 0},
                  {"heap", (uintptr_t)on_heap, "rw-p", 0},
                  {"mapping", (uintptr_t)mapped, "r--p", 0},
                  {"libc", (uintptr_t)puts, "r-xp", 0}};
    uintptr_t last_end = 0;
    int stacks = 0, heaps = 0;
    for (char *line = strtok(buffer, "\n"); line; line = strtok(0, "\n")) {
        uintptr_t start, end;
        char prot[8], name[PATH_MAX] = "";
        unsigned long offset, inode;
        unsigned major, minor;
        CHECK(sscanf(line, "%lx-%lx %7s %lx %x:%x %lu %4095s", &start, &end, prot, &offset, &major, &minor, &inode, name) >= 7);
        CHECK(start < end && start >= last_end);
        last_end = end;
        for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
            if (wanted[i].address >= start && wanted[i].address < end) {
                wanted[i].found++;
                CHECK(strcmp(prot, wanted[i].prot) == 0);
                if (i == 0) CHECK(strcmp(name, exe) == 0);
                if (i == 5) CHECK(strstr(name, "libc"));
            }
        stacks += strcmp(name, "[stack]") == 0;
        heaps += strcmp(name, "[heap]") == 0;
    }
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) printf("%s found %d\n", wanted[i].what, wanted[i].found);
    printf("stack %d heap %d\n", stacks, heaps);
    // Descriptors: 0, 1, 2 and what we open.
    int mine = SYS(open("/etc/passwd", O_RDONLY));
    DIR *dir = opendir("/proc/self/fd");
    CHECK(dir);
    int count = 0;
    for (struct dirent *e; (e = readdir(dir));)
        if (e->d_name[0] != '.' && atoi(e->d_name) != dirfd(dir)) count++;
    closedir(dir);
    snprintf(path, sizeof path, "/proc/self/fd/%d", mine);
    CHECK(readlink(path, again, sizeof again) == 11 && memcmp(again, "/etc/passwd", 11) == 0);
    printf("descriptors %d, next %d\n", count, mine);
    dir = opendir("/proc/self/task");
    CHECK(dir);
    count = 0;
    for (struct dirent *e; (e = readdir(dir));) count += e->d_name[0] != '.';
    printf("threads %d\n", count);
    return 0;
}
