// Scripts: #! with and without an argument, nested, relative interpreters, and the errors of bad ones.
#include "check.h"
static void put(const char *name, const char *text) {
    int fd = SYS(open(name, O_WRONLY | O_CREAT | O_TRUNC, 0755));
    CHECK(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    SYS(close(fd));
}
static void run(const char *name) {
    fflush(stdout);
    pid_t pid = SYS(fork());
    if (pid == 0) {
        char *argv[] = {"zeroth", "a b", "c", 0};
        char *envp[] = {"PATH=/usr/bin:/bin", 0};
        execve(name, argv, envp);
        printf("%s: %s\n", name, strerror(errno));
        fflush(stdout);
        _exit(98);
    }
    print_end(name, pid);
}
int main(void) {
    put("plain", "#!/bin/sh\necho \"$0|$1|$2|$#\"\n");
    put("argument", "#!/bin/sh -e\necho \"$0|$1\"; false; echo not reached\n");
    put("spaces", "#!  \t/bin/echo  one two  three \nignored\n");
    put("env", "#!/usr/bin/env sh\necho env \"$1\"\n");
    put("nested", "#!./plain extra\n");
    put("nested2", "#!./nested\n");
    put("missing", "#!/no/such/interpreter\n");
    put("empty", "");
    put("text", "echo text\n");
    put("nothing", "#!\n");
    put("loop", "#!./loop\n");
    put("garbage", "\x7f" "ELF garbage");
    put("no-newline", "#!/bin/echo");
    run("./plain");
    run("./argument");
    run("./spaces");
    run("./env");
    run("./nested");
    run("./nested2");
    run("./missing");
    run("./empty");
    run("./text");
    run("./nothing");
    run("./loop");
    run("./garbage");
    run("./no-newline");
    pid_t pid = SYS(fork());
    if (pid == 0) {
        execlp("./text", "text", (char *)0); // the C library runs it with sh
        _exit(98);
    }
    print_end("execlp of text", pid);
    return 0;
}
