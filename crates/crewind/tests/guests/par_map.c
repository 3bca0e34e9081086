// Threads that map, unmap, protect, move and empty memory which the others read and write at the same time. Touching what is not there
// or not allowed is a SIGSEGV, whose handler jumps back. How often, and what was read, must come out again. Forks stop the others
// wherever they are: in front of an access that will fault as well.
// varies
#include "par.h"
enum { SLOTS = 6, SLOT = 4 * PAGE };
static char *base;
static __thread sigjmp_buf back;
static __thread volatile sig_atomic_t guarded;
static void handler(int sig, siginfo_t *info, void *context) {
    (void)context;
    // Only accesses to the slots may fault.
    char *address = info->si_addr;
    if (!guarded || address < base || address >= base + SLOTS * SLOT) {
        dprintf(2, "signal %d at %p\n", sig, (void *)address);
        _exit(98);
    }
    siglongjmp(back, 1 + (info->si_code == SEGV_ACCERR));
}
static uint64_t body(int me) {
    uint64_t state = (uint64_t)me * 1234577 + 5;
    volatile uint64_t seen = (uint64_t)me;
    for (int i = 0; i < par_rounds; i++) {
        uint64_t r = next_random(&state);
        if (me == 0 && i % 50 == 25) {
            pid_t child = SYS(fork());
            if (child == 0) _exit(0);
            SYS(waitpid(child, NULL, 0));
        }
        char *slot = base + r % SLOTS * SLOT, *other = base + (r >> 8) % SLOTS * SLOT;
        char *page = slot + (r >> 16) % 4 * PAGE;
        long result = 0;
        switch ((r >> 24) % 16) {
        case 0:
        case 1:
            result = mmap(slot, SLOT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == slot;
            break;
        case 2: result = munmap(page, PAGE); break;
        case 3: result = mprotect(page, PAGE, PROT_READ); break;
        case 4: result = mprotect(slot, SLOT, PROT_READ | PROT_WRITE); break;
        case 5: result = mprotect(page, PAGE, PROT_NONE); break;
        case 6: {
            if (slot == other) break;
            // Fails when a piece of the slot is missing or protected otherwise.
            result = mremap(slot, SLOT, SLOT, MREMAP_MAYMOVE | MREMAP_FIXED, other) == other;
            break;
        }
        case 7: result = madvise(page, PAGE, MADV_DONTNEED); break;
        default: {
            guarded = 1;
            int how = sigsetjmp(back, 1);
            if (how == 0) {
                volatile uint64_t *word = (uint64_t *)(slot + (r >> 32) % (SLOT / 8) * 8);
                if (r & 1 << 30) {
                    *word += r;
                    result = (long)*word;
                } else {
                    for (int k = 0; k < 20; k++) result += (long)word[-((char *)word - slot > 160 ? k : 0)];
                }
            } else {
                result = -how;
            }
            guarded = 0;
        }
        }
        seen = mix(seen, (uint64_t)result);
    }
    return seen;
}
int main(int argc, char **argv) {
    par_args(argc, argv, 3, 3000);
    on_signal(SIGSEGV, handler, SA_NODEFER);
    base = SYS((char *)mmap(0, SLOTS * SLOT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    par_run("seen", body);
    return 0;
}
