// Code that changes itself on a writable and executable page: an immediate in a loop, an instruction just ahead
// of the one that writes it, whole functions rewritten, and code on the stack.
// build: -O1 -z execstack
#include "check.h"
typedef int (*function)(int);
static unsigned char *page;
static int run_at(unsigned char *p, int arg) { return ((function)(void *)p)(arg); }
int main(void) {
    page = SYS((unsigned char *)mmap(0, 8192, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    // mov $imm32, %eax; add %edi, %eax; ret
    unsigned char add[] = {0xb8, 0, 0, 0, 0, 0x01, 0xf8, 0xc3};
    memcpy(page, add, sizeof add);
    long sum = 0;
    for (int i = 0; i < 300; i++) {
        memcpy(page + 1, &i, 4);
        sum += run_at(page, 1000);
    }
    printf("%ld\n", sum);
    // Writes the immediate of the instruction that follows it:
    // movl %edi, 1(%rip) -> the imm32 of: mov $0, %eax; ret
    unsigned char ahead[] = {0x89, 0x3d, 0x01, 0, 0, 0, 0xb8, 0, 0, 0, 0, 0xc3};
    memcpy(page + 64, ahead, sizeof ahead);
    sum = 0;
    for (int i = 0; i < 300; i++) sum = sum * 3 % 1000003 + run_at(page + 64, i);
    printf("%ld\n", sum);
    // Data next to code on the same page, written often.
    volatile int *data = (volatile int *)(page + 2048);
    sum = 0;
    for (int i = 0; i < 3000; i++) {
        *data = i;
        sum += run_at(page, *data);
    }
    printf("%ld\n", sum);
    // A function that crosses a page border, its halves changed in turn.
    unsigned char *cross = page + 4096 - 3;
    memcpy(cross, add, sizeof add);
    sum = 0;
    for (int i = 0; i < 100; i++) {
        cross[1] = (unsigned char)i;
        sum += run_at(cross, 0);
        cross[6] = i % 2 ? 0xf8 : 0xf0; // add %edi / add %esi
        sum += run_at(cross, 5) & 0xff;
        cross[6] = 0xf8;
    }
    printf("%d\n", sum > 0);
    // On the stack.
    unsigned char local[16];
    memcpy(local, add, sizeof add);
    local[1] = 7;
    printf("%d\n", run_at(local, 35));
    // memcpy with rep movsb over code that runs next.
    unsigned char sub[] = {0xb8, 100, 0, 0, 0, 0x29, 0xf8, 0xc3};
    for (int i = 0; i < 4; i++) {
        void *to = page;
        const void *from = i % 2 ? add : sub;
        size_t n = 8;
        asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n)::"memory");
        printf("%d ", run_at(page, 1));
    }
    puts("");
    // The kernel writes code: read(2) into the page.
    int p[2];
    SYS(pipe(p));
    for (int i = 0; i < 4; i++) {
        CHECK(write(p[1], i % 2 ? add : sub, 8) == 8);
        CHECK(read(p[0], page, 8) == 8);
        printf("%d ", run_at(page, 2));
    }
    puts("");
    return 0;
}
