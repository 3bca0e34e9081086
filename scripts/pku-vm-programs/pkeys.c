// Do protection keys work on this machine? Two threads with different rights use one page; what the cpu and the kernel
// do is compared with what the architecture promises. Says also which features the cpu has and how many keys there are.

#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DENY_ACCESS 1u
#define DENY_WRITE 2u

static int failures;

static void expect(int holds, const char *what) {
    if (holds)
        return;
    printf("not so: %s\n", what);
    failures++;
}

static unsigned read_pkru(void) {
    unsigned eax, edx;
    __asm__ volatile("rdpkru" : "=a"(eax), "=d"(edx) : "c"(0));
    return eax;
}

static void write_pkru(unsigned value) {
    __asm__ volatile("wrpkru" : : "a"(value), "c"(0), "d"(0) : "memory");
}

static void set_rights(int key, unsigned rights) {
    write_pkru((read_pkru() & ~(3u << (2 * key))) | rights << (2 * key));
}

static volatile int *page;
static int key, other;

// What the handler saw; each thread has its own.
static _Thread_local volatile int faults, code, fault_key;
static _Thread_local void *volatile address;
static _Thread_local volatile unsigned pkru_in_handler;

// Whether the handler leaves the rights alone: the faulting instruction then waits for the page to get its old key.
static atomic_int only_retry;
static int pkru_offset;

// Where the context keeps the PKRU that sigreturn will load: in the extended state, at the offset that cpuid names.
static unsigned *saved_pkru(ucontext_t *context) {
    return (unsigned *)((char *)context->uc_mcontext.fpregs + pkru_offset);
}

static void on_fault(int signal, siginfo_t *info, void *context) {
    (void)signal;
    faults++;
    code = info->si_code;
    fault_key = (int)info->si_pkey;
    address = info->si_addr;
    pkru_in_handler = read_pkru();
    if (atomic_load(&only_retry)) {
        sched_yield();
        return;
    }
    // The instruction runs again after the return, so the right must be there then.
    *saved_pkru(context) &= ~(3u << (2 * info->si_pkey));
}

static atomic_int turn;

static void wait_turn(int mine) {
    while (atomic_load(&turn) != mine)
        sched_yield();
}

// Starts with the rights that its creator had: all for the key.
static void *second_thread(void *unused) {
    (void)unused;
    page[0] = 1;
    expect(faults == 0, "a thread inherits its creator's rights");

    set_rights(key, DENY_WRITE);
    expect(page[0] == 1 && faults == 0, "reading is possible when only writing is denied");
    page[0] = 2;
    expect(faults == 1 && code == SEGV_PKUERR && fault_key == key && address == page, "a denied write is SEGV_PKUERR");
    expect(page[0] == 2, "the denied write is done again");
    expect((pkru_in_handler >> (2 * key) & 3) != 0, "the handler starts with the kernel's default rights");

    set_rights(key, DENY_ACCESS);
    faults = 0;
    int value = page[0];
    expect(faults == 1 && code == SEGV_PKUERR && fault_key == key, "a denied read is SEGV_PKUERR");
    expect(value == 2, "the denied read is done again");

    set_rights(key, DENY_ACCESS);
    int pipe_ends[2];
    if (pipe(pipe_ends) != 0)
        expect(0, "pipe");
    expect(write(pipe_ends[1], (void *)page, 4) < 0 && errno == EFAULT, "the kernel obeys the rights of the caller");
    set_rights(key, 0);
    expect(write(pipe_ends[1], (void *)page, 4) == 4, "and reads when it may");

    // The first thread gives the page the other key meanwhile, for which this one has no right.
    faults = 0;
    atomic_store(&turn, 1);
    wait_turn(2);
    page[0] = 3;
    expect(faults == 1 && code == SEGV_PKUERR && fault_key == other, "a change of the page's key is seen by other threads");
    return NULL;
}

static atomic_int writer_ends;

// Writes all the time, with a right for one of the page's two keys.
static void *writer(void *faulted) {
    set_rights(key, 0);
    set_rights(other, DENY_ACCESS);
    while (!atomic_load(&writer_ends))
        (*page)++;
    *(int *)faulted = faults;
    return NULL;
}

// When pkey_mprotect returns, no other cpu writes with its old rights any more: what recording in parallel rests on.
static void take_page_from_writer(void) {
    enum { ROUNDS = 300 };
    int faulted = 0, late = 0;
    pthread_t thread;
    set_rights(key, 0);
    set_rights(other, 0);
    atomic_store(&only_retry, 1);
    expect(pkey_mprotect((void *)page, 1, PROT_READ | PROT_WRITE, key) == 0, "pkey_mprotect");
    if (pthread_create(&thread, NULL, writer, &faulted) != 0) {
        expect(0, "pthread_create");
        return;
    }
    for (int round = 0; round < ROUNDS; round++) {
        int before = *page;
        while (*page == before)
            sched_yield();
        expect(pkey_mprotect((void *)page, 1, PROT_READ | PROT_WRITE, other) == 0, "pkey_mprotect");
        int taken = *page;
        for (int i = 0; i < 20000; i++)
            late += *page != taken;
        // With one cpu, the writer's turn.
        usleep(200);
        late += *page != taken;
        expect(pkey_mprotect((void *)page, 1, PROT_READ | PROT_WRITE, key) == 0, "pkey_mprotect");
    }
    atomic_store(&writer_ends, 1);
    pthread_join(thread, NULL);
    printf("a page was taken %d times from a thread that writes: %d faults, %d writes seen afterwards\n", ROUNDS, faulted, late);
    expect(faulted > 0, "a thread that lost a page faults");
    expect(late == 0, "no write with old rights after pkey_mprotect");
}

static void print_features(void) {
    unsigned a, b, c, d;
    __cpuid_count(7, 0, a, b, c, d);
    unsigned seven_b = b, seven_c = c;
    __cpuid_count(0xd, 1, a, b, c, d);
    unsigned xsave = a;
    __cpuid_count(1, 0, a, b, c, d);
    unsigned one_c = c;
    struct {
        const char *name;
        unsigned has;
    } features[] = {
        {"pku", seven_c & 1u << 3},     {"ospke", seven_c & 1u << 4},   {"avx", one_c & 1u << 28},
        {"avx2", seven_b & 1u << 5},    {"avx512f", seven_b & 1u << 16}, {"fsgsbase", seven_b & 1u},
        {"xsave", one_c & 1u << 26},    {"xsaveopt", xsave & 1u},       {"xsavec", xsave & 2u},
        {"xgetbv1", xsave & 4u},        {"rdrand", one_c & 1u << 30},
    };
    for (int with = 1; with >= 0; with--) {
        printf(with ? "cpu has" : "cpu has not");
        for (unsigned i = 0; i < sizeof features / sizeof *features; i++)
            if (!features[i].has == !with)
                printf(" %s", features[i].name);
        printf("\n");
    }
    printf("the kernel lets programs use fsgsbase: %s\n", getauxval(AT_HWCAP2) & 2 ? "yes" : "no");
    __cpuid_count(0xd, 9, a, b, c, d);
    pkru_offset = (int)b;
    printf("PKRU in the extended state: %u bytes at %u\n", a, b);
}

int main(void) {
    print_features();

    int keys[16], count = 0, got;
    while (count < 16 && (got = pkey_alloc(0, 0)) >= 0)
        keys[count++] = got;
    printf("pkey_alloc gives %d keys\n", count);
    if (count < 2) {
        printf("pkey_alloc: %s\n", strerror(errno));
        return 1;
    }
    for (int i = 2; i < count; i++)
        expect(pkey_free(keys[i]) == 0, "pkey_free");
    key = keys[0];
    other = keys[1];

    long size = sysconf(_SC_PAGESIZE);
    void *memory = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || pkey_mprotect(memory, (size_t)size, PROT_READ | PROT_WRITE, key) != 0) {
        perror("pkey_mprotect");
        return 1;
    }
    page = memory;

    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);
    set_rights(key, 0);
    set_rights(other, DENY_ACCESS);

    pthread_t thread;
    if (pthread_create(&thread, NULL, second_thread, NULL) != 0)
        return 1;
    wait_turn(1);
    page[0] = 4;
    expect(faults == 0, "rights of one thread do not depend on those of another");
    expect(pkey_mprotect(memory, (size_t)size, PROT_READ | PROT_WRITE, other) == 0, "pkey_mprotect");
    set_rights(other, 0);
    page[0] = 5;
    expect(faults == 0, "the first thread has a right for the page's new key");
    atomic_store(&turn, 2);
    pthread_join(thread, NULL);
    expect(page[0] == 3, "the second thread wrote");

    take_page_from_writer();

    printf(failures ? "protection keys do not work\n" : "protection keys work\n");
    return failures != 0;
}
