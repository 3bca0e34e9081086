// What is common to all random programs: runs them one after the other and prints what each thread observed and what memory
// holds in the end. Arguments: first program, how many, number of threads (0: the program's own).
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

enum { MAX_THREADS = 64, PAGE = 4096, FUNCTIONS = 8 };

// As the assembly expects it; offsets are checked below.
struct context {
    unsigned char *shared;   // 0: pages that all threads use
    unsigned char *private;  // 8: the thread's own
    uint64_t digest;         // 16: of all that it read
    uint64_t walk;           // 24: start of its walk through addresses
    int32_t pipe_read;       // 32: a pipe of its own
    int32_t pipe_write;      // 36
    int32_t zeros;           // 40: /dev/zero
    int32_t unused;
};
_Static_assert(offsetof(struct context, pipe_read) == 32 && offsetof(struct context, zeros) == 40, "the assembly knows them");

// One row of the table at the end of the assembly.
struct program {
    uint64_t threads;
    uint64_t seed;
    uint64_t signals;
    void (*body[FUNCTIONS])(struct context *);
    void (*target[4])(void);
};
extern const struct program programs[];
extern const uint64_t program_count, shared_size, table_size, private_size;
int features;

static struct context contexts[MAX_THREADS];
static const struct program *current;
static unsigned char *memory;
static _Atomic int waiting;
static int threads;

static void on_alarm(int sig) {
    (void)sig;
    // Races with everybody, in a word that the program's ops use too.
    *(volatile uint32_t *)(memory + table_size + 128) += 1;
    *(volatile uint16_t __attribute__((aligned(1))) *)(memory + table_size + PAGE - 1) ^= 0x5a5a;
}

static void *enter(void *arg) {
    struct context *context = arg;
    waiting--;
    while (waiting > 0) sched_yield();
    current->body[(size_t)(context - contexts) % current->threads](context);
    return 0;
}

static uint64_t hash(const unsigned char *p, size_t n) {
    uint64_t h = 0xcbf29ce484222325;
    for (size_t i = 0; i < n; i++) h = (h ^ p[i]) * 0x100000001b3;
    return h;
}

static void fail(const char *what) {
    perror(what);
    exit(99);
}

static void run(uint64_t number, int asked) {
    current = &programs[number];
    threads = asked ? asked : (int)current->threads;
    memset(memory, 0, table_size + shared_size + PAGE);
    // Function pointers that the program calls through, and exchanges.
    for (size_t i = 0; i < table_size / 8; i++) memcpy(memory + 8 * i, &current->target[i % 4], 8);
    for (size_t i = 0; i < shared_size; i++) memory[table_size + i] = (unsigned char)(i * 37 + current->seed);
    for (int t = 0; t < threads; t++) {
        struct context *c = &contexts[t];
        c->shared = memory + table_size;
        memset(c->private, t, private_size);
        c->digest = current->seed + (uint64_t)t;
        c->walk = (current->seed ^ ((uint64_t)t << 32)) * 0x9e3779b97f4a7c15;
    }
    struct itimerval often = {{0, 700}, {0, 300}}, never = {{0, 0}, {0, 0}};
    if (current->signals && setitimer(ITIMER_REAL, &often, 0)) fail("setitimer");
    pthread_t ids[MAX_THREADS];
    waiting = threads;
    for (int t = 0; t < threads; t++)
        if (pthread_create(&ids[t], 0, enter, &contexts[t])) fail("pthread_create");
    for (int t = 0; t < threads; t++) pthread_join(ids[t], 0);
    if (current->signals && setitimer(ITIMER_REAL, &never, 0)) fail("setitimer");
    printf("program %lu, %d threads: memory %016lx, seen", number, threads, hash(memory + table_size, shared_size));
    for (int t = 0; t < threads; t++) printf(" %016lx", contexts[t].digest);
    printf("\n");
    fflush(stdout);
}

int main(int argc, char **argv) {
    uint64_t first = argc > 1 ? strtoul(argv[1], 0, 0) : 0, count = argc > 2 ? strtoul(argv[2], 0, 0) : 1;
    int asked = argc > 3 ? atoi(argv[3]) : 0;
    if (first + count > program_count || asked < 0 || asked > MAX_THREADS) {
        fprintf(stderr, "there are %lu programs; at most %d threads\n", program_count, MAX_THREADS);
        return 2;
    }
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) features |= 1;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) features |= 2;
    signal(SIGALRM, on_alarm);
    memory = mmap(0, table_size + shared_size + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) fail("mmap");
    int zeros = open("/dev/zero", O_RDONLY);
    if (zeros == -1) fail("/dev/zero");
    for (int t = 0; t < MAX_THREADS; t++) {
        int fds[2];
        if (pipe2(fds, O_NONBLOCK)) fail("pipe2");
        contexts[t].pipe_read = fds[0];
        contexts[t].pipe_write = fds[1];
        contexts[t].zeros = zeros;
        contexts[t].private = aligned_alloc(64, private_size);
        if (!contexts[t].private) fail("aligned_alloc");
    }
    for (uint64_t n = first; n < first + count; n++) run(n, asked);
    return 0;
}
