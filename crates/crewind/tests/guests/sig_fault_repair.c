// The classic user-space pager: a SIGSEGV handler opens pages on demand, and the instruction runs again.
#include "check.h"
static char *area;
static const size_t pages = 500;
static int faults;
static void handler(int sig, siginfo_t *info, void *context) {
    (void)sig, (void)context;
    char *at = info->si_addr;
    CHECK(at >= area && at < area + pages * 4096);
    char *page = area + (at - area) / 4096 * 4096;
    SYS(mprotect(page, 4096, PROT_READ | PROT_WRITE));
    memset(page, (int)(page - area) / 4096, 4096);
    faults++;
}
int main(void) {
    area = SYS((char *)mmap(0, pages * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    on_signal(SIGSEGV, handler, 0);
    uint64_t state = 88172645463325252, sum = 0;
    for (int i = 0; i < 20000; i++) {
        size_t at = next_random(&state) % (pages * 4096 - 8);
        uint64_t value;
        memcpy(&value, area + at, 8); // may cross a page border
        sum = sum * 31 + value;
        area[at] ^= (char)i;
    }
    // rep string instructions stop in the middle and go on.
    SYS(mprotect(area, pages * 4096, PROT_NONE));
    faults = 0;
    char *to = area + 100;
    size_t n = 40 * 4096;
    asm volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(0x5a) : "memory");
    CHECK(to == area + 100 + 40 * 4096 && n == 0);
    printf("%d faults in rep stosb, sum %016lx, hash %016lx\n", faults, sum, hash_bytes(area, 41 * 4096));
    SYS(mprotect(area, pages * 4096, PROT_NONE));
    faults = 0;
    const char *from = area + 50 * 4096 + 7;
    to = area + 150 * 4096 + 9;
    n = 30 * 4096 / 8;
    asm volatile("rep movsq" : "+S"(from), "+D"(to), "+c"(n) : : "memory");
    printf("%d faults in rep movsq\n", faults);
    return 0;
}
