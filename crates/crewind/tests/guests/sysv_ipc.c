// System V and POSIX message queues and semaphores, between parent and child.
#include "check.h"
#include <mqueue.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
struct message {
    long type;
    char text[32];
};
int main(void) {
    int q = SYS(msgget(IPC_PRIVATE, IPC_CREAT | 0600));
    int s = SYS(semget(IPC_PRIVATE, 2, IPC_CREAT | 0600));
    SYS(semctl(s, 0, SETVAL, 0));
    pid_t pid = SYS(fork());
    if (pid == 0) {
        struct message m = {7, "from the child"};
        SYS(msgsnd(q, &m, sizeof m.text, 0));
        m.type = 3;
        strcpy(m.text, "second");
        SYS(msgsnd(q, &m, sizeof m.text, 0));
        SYS(semop(s, &(struct sembuf){0, 2, 0}, 1));
        _exit(0);
    }
    SYS(semop(s, &(struct sembuf){0, -2, 0}, 1));
    struct message m;
    CHECK(msgrcv(q, &m, sizeof m.text, 3, 0) == sizeof m.text);
    printf("%ld %s\n", m.type, m.text);
    CHECK(msgrcv(q, &m, sizeof m.text, 0, 0) == sizeof m.text);
    printf("%ld %s\n", m.type, m.text);
    print_end("child", pid);
    struct msqid_ds info;
    SYS(msgctl(q, IPC_STAT, &info));
    CHECK(info.msg_qnum == 0);
    SYS(msgctl(q, IPC_RMID, 0));
    SYS(semctl(s, 0, IPC_RMID));
    char name[64];
    snprintf(name, sizeof name, "/crewind-test-%d", getpid());
    struct mq_attr attr = {.mq_maxmsg = 4, .mq_msgsize = 64};
    mqd_t mq = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &attr);
    if (mq != (mqd_t)-1) {
        SYS(mq_send(mq, "low", 3, 1));
        SYS(mq_send(mq, "high", 4, 9));
        char text[64];
        unsigned priority;
        CHECK(mq_receive(mq, text, 64, &priority) == 4 && priority == 9);
        CHECK(mq_receive(mq, text, 64, &priority) == 3 && priority == 1);
        SYS(mq_unlink(name));
    }
    puts("queues work");
    return 0;
}
