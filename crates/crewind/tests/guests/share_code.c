// Code in memory that is mapped twice, writable at one place and executable at another, as compilers at run time have it that never
// let memory be both: threads call what another one has just written. Some versions of a function look at the flags that they
// are called with, and some do not.
// varies
#include "par.h"
#include <sys/mman.h>
typedef int (*function)(void);
enum { SLOTS = 256, SLOT = 32 };
static unsigned char *writable, *executable;
static _Atomic int published, done;
static void emit(int version) {
    unsigned char *at = writable + version % SLOTS * SLOT;
    int n = 0;
    if (version % 2) {
        // jmp to the next instruction: nothing overwrites the flags.
        at[n++] = 0xeb, at[n++] = 0;
    } else {
        // xor eax, eax
        at[n++] = 0x31, at[n++] = 0xc0;
    }
    // mov $version, %eax; lea 0(%rax), %rax; ret
    at[n++] = 0xb8;
    memcpy(at + n, &version, 4);
    n += 4;
    at[n++] = 0x48, at[n++] = 0x8d, at[n++] = 0x40, at[n++] = 0, at[n++] = 0xc3;
    published = version;
}
// Calls a function with the carry flag set: its result, and whether it still is.
static int call(function f, int *carry) {
    int value;
    unsigned char c;
    __asm__ volatile("sub $136, %%rsp; stc; call *%2; setc %1; lea 136(%%rsp), %%rsp"
                     : "=a"(value), "=&b"(c)
                     : "r"(f)
                     : "memory", "cc");
    *carry = c;
    return value;
}
static uint64_t body(int me) {
    uint64_t seen = (uint64_t)me;
    unsigned spins = 0;
    if (me == 0) {
        for (int i = 1; i <= par_rounds; i++) {
            emit(i);
            for (int k = 0; k < 30; k++) par_relax(&spins);
        }
        done = 1;
        return seen;
    }
    do {
        int version = published, carry;
        int value = call((function)(void *)(executable + version % SLOTS * SLOT), &carry);
        // The slot may have been used again meanwhile.
        if (published < version + SLOTS) {
            CHECK(value == version);
            CHECK(carry == version % 2);
        }
        seen = mix(seen, (uint64_t)(2 * value + carry));
    } while (!done);
    return seen;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 3, 200);
    int fd = SYS(memfd_create("code", MFD_CLOEXEC));
    SYS(ftruncate(fd, SLOTS * SLOT));
    writable = SYS((unsigned char *)mmap(0, SLOTS * SLOT, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    executable = SYS((unsigned char *)mmap(0, SLOTS * SLOT, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0));
    emit(0);
    par_run("seen", body);
    int carry;
    printf("last %d\n", call((function)(void *)(executable + par_rounds % SLOTS * SLOT), &carry));
    return 0;
}
