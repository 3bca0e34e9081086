// Files and directories: creation, links, renames, times, modes, locks, holes, attributes, directory reading.
#include "check.h"
#include <dirent.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/sendfile.h>
#include <sys/statfs.h>
#include <sys/xattr.h>
static int compare(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }
int main(void) {
    char cwd[PATH_MAX];
    CHECK(getcwd(cwd, sizeof cwd));
    SYS(mkdir("d", 0755));
    int dir = SYS(open("d", O_DIRECTORY | O_RDONLY));
    char name[64];
    for (int i = 0; i < 500; i++) {
        snprintf(name, sizeof name, "file-with-a-long-name-%03d", i);
        SYS(close(SYS(openat(dir, name, O_CREAT | O_EXCL | O_WRONLY, 0644))));
    }
    FAILS(openat(dir, name, O_CREAT | O_EXCL | O_WRONLY, 0644), EEXIST);
    DIR *d = fdopendir(dir);
    static char *names[600];
    int count = 0;
    for (struct dirent *e; (e = readdir(d));) names[count++] = strdup(e->d_name);
    qsort(names, (size_t)count, sizeof *names, compare);
    printf("%d entries, from %s to %s\n", count, names[0], names[count - 1]);
    rewinddir(d);
    CHECK(readdir(d));
    closedir(d);
    int fd = SYS(open("f", O_RDWR | O_CREAT, 0640));
    CHECK(write(fd, "0123456789", 10) == 10);
    CHECK(pwrite(fd, "x", 1, 1 << 20) == 1);
    struct stat st;
    SYS(fstat(fd, &st));
    printf("size %ld mode %o links %lu\n", (long)st.st_size, st.st_mode & 07777, (unsigned long)st.st_nlink);
    CHECK(st.st_blocks * 512 < 1 << 20);
    SYS(ftruncate(fd, 5));
    CHECK(lseek(fd, 0, SEEK_END) == 5);
    CHECK(lseek(fd, 0, SEEK_HOLE) == 5 && lseek(fd, 0, SEEK_DATA) == 0);
    SYS(posix_fallocate(fd, 0, 100) == 0 ? 0 : -1);
    SYS(link("f", "g"));
    SYS(symlink("f", "s"));
    SYS(rename("g", "h"));
    CHECK(renameat2(AT_FDCWD, "h", AT_FDCWD, "f", RENAME_NOREPLACE) == -1 && errno == EEXIST);
    char target[64] = {0};
    CHECK(readlink("s", target, 63) == 1 && target[0] == 'f');
    SYS(lstat("s", &st));
    CHECK(S_ISLNK(st.st_mode));
    struct timespec times[2] = {{1000000000, 5}, {1234567890, 987654321}};
    SYS(futimens(fd, times));
    SYS(fstat(fd, &st));
    printf("mtime %ld.%09ld links %lu\n", st.st_mtim.tv_sec, st.st_mtim.tv_nsec, (unsigned long)st.st_nlink);
    SYS(fchmod(fd, 0604));
    SYS(stat("h", &st));
    printf("mode %o\n", st.st_mode & 07777);
    struct statx sx;
    SYS(statx(AT_FDCWD, "f", 0, STATX_ALL, &sx));
    CHECK(sx.stx_size == 100);
    CHECK(access("f", R_OK) == 0 && access("nothing", F_OK) == -1);
    SYS(faccessat(AT_FDCWD, "f", W_OK, AT_EACCESS));
    if (setxattr("f", "user.test", "value", 5, 0) == 0) {
        char value[16];
        CHECK(getxattr("f", "user.test", value, sizeof value) == 5);
        CHECK(listxattr("f", value, sizeof value) == 10);
        SYS(removexattr("f", "user.test"));
    }
    SYS(flock(fd, LOCK_EX | LOCK_NB));
    int other = SYS(open("f", O_RDWR));
    FAILS(flock(other, LOCK_SH | LOCK_NB), EWOULDBLOCK);
    SYS(flock(fd, LOCK_UN));
    struct flock lock = {.l_type = F_WRLCK, .l_start = 10, .l_len = 5};
    SYS(fcntl(fd, F_SETLK, &lock));
    fflush(stdout);
    pid_t pid = SYS(fork());
    if (pid == 0) {
        struct flock asked = {.l_type = F_WRLCK, .l_start = 0, .l_len = 0};
        SYS(fcntl(other, F_GETLK, &asked));
        _exit(asked.l_type == F_WRLCK && asked.l_pid == getppid() && asked.l_start == 10 ? 6 : 7);
    }
    print_end("lock seen by the child", pid);
    FAILS(open("d/none/x", O_RDONLY), ENOENT);
    FAILS(open("f/x", O_RDONLY), ENOTDIR);
    FAILS(open("d", O_WRONLY), EISDIR);
    FAILS(rmdir("d"), ENOTEMPTY);
    FAILS(unlink("d"), EISDIR);
    FAILS(open("s", O_RDONLY | O_NOFOLLOW), ELOOP);
    int path = SYS(open("f", O_PATH));
    FAILS(read(path, name, 1), EBADF);
    int append = SYS(open("f", O_WRONLY | O_APPEND));
    CHECK(write(append, "end", 3) == 3);
    SYS(fstat(append, &st));
    CHECK(st.st_size == 103);
    int temp = SYS(open(".", O_TMPFILE | O_RDWR, 0600));
    CHECK(write(temp, "t", 1) == 1);
    struct iovec iov[3] = {{"ab", 2}, {"", 0}, {"cde", 3}};
    CHECK(pwritev(temp, iov, 3, 10) == 5);
    char back[16];
    struct iovec in[2] = {{back, 2}, {back + 2, 3}};
    CHECK(preadv(temp, in, 2, 10) == 5 && memcmp(back, "abcde", 5) == 0);
    CHECK(copy_file_range(temp, &(loff_t){10}, append, 0, 5, 0) == -1 || 1);
    SYS(fsync(fd));
    SYS(fdatasync(fd));
    struct statfs fs;
    SYS(statfs(".", &fs));
    SYS(chdir("d"));
    CHECK(getcwd(target, sizeof target) || errno == ERANGE);
    SYS(fchdir(SYS(open("..", O_RDONLY))));
    SYS(mknod("fifo", S_IFIFO | 0600, 0));
    umask(022);
    FAILS(mkdir("d", 0755), EEXIST);
    SYS(syncfs(fd));
    puts("files work");
    return 0;
}
