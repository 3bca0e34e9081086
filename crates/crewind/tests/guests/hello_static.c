// A static program at its fixed address: no interpreter, IRELATIVE relocations, its own TLS set-up.
// build: -static -no-pie -fno-pie
#include "check.h"
static __thread int per_thread = 42;
int main(int argc, char **argv) {
    printf("static %d %d %zu\n", argc, per_thread, strlen(argv[0]) > 0 ? (size_t)1 : 0);
    char buffer[4096];
    memset(buffer, 'x', sizeof buffer);
    printf("%016lx\n", hash_bytes(buffer, sizeof buffer));
    return 0;
}
