/* A program's own say in its recording by crewind. Link with libcrewind_api.a.
 *
 * The calls work in programs that `crewind run` started. Without crewind they return -ENOSYS. All return a negative errno
 * when they did nothing.
 */
#ifndef CREWIND_H
#define CREWIND_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* One call of rec_owner. A list begins with a node that is none itself: only its `next` counts. */
struct recording {
    uint64_t branchNum;         /* branches of the thread since the region began, as crewind counts them: backward and
                                 * indirect ones. A replay compares what came between two calls of a thread, unless this
                                 * is 0 */
    uint64_t missedBranchNum;   /* those that the processor predicted wrongly, since the thread's first call; 0 where it
                                 * does not count them (most virtual machines). For information */
    uint32_t threadId;          /* 1, 2, ... as threads were made; first those that the region began with */
    uint64_t instructionOffset; /* address of the call's instruction */
    struct recording *next;
};

/* Begins to record this process here. `rec`: the list that stop_rec fills, or NULL.
 * -EBUSY: a recording or replay is on. -EOPNOTSUPP: the process has System V shared memory, or shared memory mapped twice.
 * -EIO: the trace cannot be written (crewind says why). */
long start_rec(struct recording *rec);

/* Ends the recording: the trace is complete, the program goes on. Returns the number of rec_owner calls, and has them
 * in the list, all in one array at rec->next.
 * -EINVAL: no recording is on. -EBUSY: `crewind record` records the program. -ENOMEM: no memory for the list; the
 * recording has ended all the same, and rec_list gets it later. */
long stop_rec(void);

/* Begins to replay the order of a list in place: the program does the region again, and each rec_owner waits for its turn.
 * -EBUSY: a recording or replay is on. -EFAULT: no list is there. -EINVAL: the list has no end. */
long start_rep(const struct recording *rec);

/* Only the order of a list's calls is to count in a replay, not what the threads do in between: for regions whose work is not
 * the same each time. */
static inline void rec_order_only(struct recording *rec)
{
    for (; rec; rec = rec->next)
        rec->branchNum = 0;
}

/* Ends the replay. Returns the number of rec_owner calls.
 * -EINVAL: no replay is on. -ERANGE: not as many calls as in the recording, or one that did not fit. */
long stop_rep(void);

/* Gets the calls of the last recording or replay, as stop_rec does. */
long rec_list(struct recording *rec);

/* Where nodes of lists come from: malloc (the default; free(rec->next) frees a list), a function, or a buffer, of which
 * as many are used as there are. */
void rec_set_allocator(void *(*allocate)(size_t size, void *context), void *context);
void rec_set_buffer(struct recording *nodes, size_t count);

/* The calling thread takes ownership here: a step in the one order of all such calls of the process.
 * -EINVAL: neither recording nor replay is on. In a replay, with a message that names the thread:
 * -ESRCH: the thread has no call (any more) in the recording, or made it elsewhere. -ERANGE: there are no more calls, or the
 * thread has not made as many branches since its last one.
 * -ETIMEDOUT: the thread whose turn it is has ended, or has not come for ten seconds. -ECANCELED: after any of these, until
 * stop_rep. */
static inline long rec_owner(void)
{
    long ret = 0x00c3e003;
    __asm__ volatile("syscall" : "+a"(ret) : : "rcx", "r11", "memory");
    return ret;
}

#ifdef __cplusplus
}
#endif

#endif
