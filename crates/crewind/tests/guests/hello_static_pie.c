// A static PIE relocates itself.
// build: -static-pie -fPIE
#include "check.h"
static const char *const words[] = {"relocated", "by", "itself"};
int main(void) {
    for (unsigned i = 0; i < 3; i++) puts(words[i]);
    return 0;
}
