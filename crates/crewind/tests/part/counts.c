// A region whose work is the same as in the recording, and another time not.
#include <pthread.h>
#include <stdio.h>
#include "crewind.h"

static long first_error;

static void step(void)
{
    long ret = rec_owner();
    if (ret < 0 && first_error == 0)
        first_error = ret;
}

static void *thread(void *rounds)
{
    for (int n = 0; n < 3; n++) {
        for (volatile long i = 0; i < (long)rounds; i++)
            ;
        step();
    }
    return NULL;
}

// Its own step, and those of a thread that works for so many rounds.
static long region(long rounds)
{
    pthread_t other;
    first_error = 0;
    step();
    if (pthread_create(&other, NULL, thread, (void *)rounds) != 0)
        return -1;
    // Not between two steps: whether there is something to wait for is chance.
    pthread_join(other, NULL);
    return first_error;
}

int main(void)
{
    struct recording list = {0};
    setvbuf(stdout, NULL, _IONBF, 0);
    if (start_rec(&list) != 0)
        return 1;
    region(10);
    printf("stop_rec: %ld\n", stop_rec());
    start_rep(&list);
    printf("the same: %ld\n", region(10));
    printf("stop_rep: %ld\n", stop_rep());
    start_rep(&list);
    printf("one round more: %ld\n", region(11));
    printf("stop_rep: %ld\n", stop_rep());
    // The thread's second step: neither it nor the next one has anything to compare with.
    list.next->next->next->branchNum = 0;
    start_rep(&list);
    printf("one round more: %ld\n", region(11));
    printf("stop_rep: %ld\n", stop_rep());
    rec_order_only(&list);
    start_rep(&list);
    printf("only the order: %ld\n", region(11));
    printf("stop_rep: %ld\n", stop_rep());
    return 0;
}
