// Parent and children write to the same standard output in an order that they arrange through pipes, and then
// without order: replay must print in the order of the recording.
// varies
#include "check.h"
int main(void) {
    for (int c = 0; c < 6; c++) {
        if (SYS(fork()) == 0) {
            char line[64];
            for (int i = 0; i < 40; i++) {
                int n = snprintf(line, sizeof line, "child %d line %d\n", c, i);
                CHECK(write(1 + (i % 5 == 0), line, (size_t)n) == n);
                if (i % 8 == 0) sched_yield();
            }
            _exit(c);
        }
    }
    int sum = 0, status;
    while (wait(&status) > 0) sum = sum * 3 + WEXITSTATUS(status);
    printf("order of ends %d\n", sum);
    return 0;
}
