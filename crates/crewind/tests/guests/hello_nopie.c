// A dynamic program at its fixed address.
// build: -no-pie -fno-pie
// exit: 3
#include "check.h"
int data = 5;
int main(void) {
    CHECK((uintptr_t)&data < 0x60000000);
    printf("hello, %d at a fixed address\n", data);
    return 3;
}
