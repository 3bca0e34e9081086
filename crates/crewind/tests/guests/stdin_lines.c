// Reads standard input by bytes, lines and blocks, and seeks in vain.
// stdin: first line\nsecond line\nthird
#include "check.h"
int main(void) {
    char c;
    CHECK(read(0, &c, 1) == 1);
    printf("first byte %c\n", c);
    char *line = 0;
    size_t capacity = 0;
    ssize_t n;
    while ((n = getline(&line, &capacity, stdin)) > 0) printf("%zd: %s", n, line);
    CHECK(feof(stdin));
    FAILS(lseek(0, 0, SEEK_SET), ESPIPE);
    CHECK(!isatty(0));
    return 0;
}
