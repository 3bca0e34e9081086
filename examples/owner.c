/* Two threads race on a counter. Their order is recorded and then repeated in the same process.
 *
 *     cargo build --release
 *     cc -O2 -Icrates/crewind-api/include examples/owner.c target/release/libcrewind_api.a -Wl,-z,now -o owner
 *     target/release/crewind run -- ./owner 1000
 *
 * With crewind it prints
 *
 *     1000 rounds: the replay had the recorded order and value each time, 37 different values
 *
 * (another number of values each time), and each round leaves a trace. The linker's `-z now` has functions bound before
 * the program begins: bound at their first call, they would make the first round different. Without crewind:
 *
 *     recording is not available (Function not implemented); counting anyway
 *     value 8141235930264420337
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "crewind.h"

enum { STEPS = 50 };

static volatile uint64_t value;
static volatile long failed;

static void *racer(void *arg)
{
    uint64_t me = (uint64_t)(uintptr_t)arg;
    /* The same work each time: a replay compares how many branches come in front of each step. */
    unsigned seed = (unsigned)me;
    for (int i = 0; i < STEPS; i++) {
        /* Who comes first is left to chance. */
        if (rand_r(&seed) % 4 == 0)
            sched_yield();
        long ret = rec_owner();
        value = value * 31 + me;
        if (ret < 0 && ret != -ENOSYS)
            failed = ret;
    }
    return NULL;
}

static uint64_t region(void)
{
    pthread_t threads[2];
    value = 1;
    for (int i = 0; i < 2; i++)
        if (pthread_create(&threads[i], NULL, racer, (void *)(uintptr_t)(i + 1)) != 0)
            exit(2);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    return value;
}

static int same(const struct recording *a, const struct recording *b)
{
    for (; a && b; a = a->next, b = b->next)
        if (a->threadId != b->threadId || a->instructionOffset != b->instructionOffset)
            return 0;
    return a == b;
}

static void die(const char *what, long ret)
{
    fprintf(stderr, "%s: %s\n", what, strerror((int)-ret));
    exit(1);
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : 1;
    uint64_t *seen = calloc((size_t)rounds, sizeof *seen);
    int different = 0;
    for (int round = 0; round < rounds; round++) {
        struct recording recorded = {0}, replayed = {0};
        long ret = start_rec(&recorded);
        if (ret == -ENOSYS) {
            printf("recording is not available (%s); counting anyway\n", strerror(ENOSYS));
            printf("value %llu\n", (unsigned long long)region());
            return 0;
        }
        if (ret < 0)
            die("start_rec", ret);
        uint64_t first = region();
        if ((ret = stop_rec()) != 2 * STEPS)
            die("stop_rec", ret);
        if ((ret = start_rep(&recorded)) < 0)
            die("start_rep", ret);
        uint64_t second = region();
        if ((ret = stop_rep()) != 2 * STEPS)
            die("stop_rep", ret);
        if ((ret = rec_list(&replayed)) != 2 * STEPS)
            die("rec_list", ret);
        if (failed)
            die("rec_owner", failed);
        if (first != second || !same(recorded.next, replayed.next)) {
            printf("round %d: recorded %llu, replayed %llu\n", round, (unsigned long long)first,
                   (unsigned long long)second);
            return 1;
        }
        int known = 0;
        for (int i = 0; i < different; i++)
            known |= seen[i] == first;
        if (!known)
            seen[different++] = first;
        free(recorded.next);
        free(replayed.next);
    }
    printf("%d rounds: the replay had the recorded order and value each time, %d different values\n", rounds,
           different);
    return 0;
}
