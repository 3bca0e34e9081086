// The simplest dynamic PIE program, with arguments.
// args: one two
#include "check.h"
int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) printf("hello %s\n", argv[i]);
    fprintf(stderr, "to standard error\n");
    return 7 * 0;
}
