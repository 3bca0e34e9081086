// A program with one thread, for stopping in.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static volatile int values[8];
static int depth;
__attribute__((noinline)) void store(int i, int v) {
    values[i] = v;
}
__attribute__((noinline)) int work(int n) {
    int sum = 0;
    for (int i = 0; i < n; i++) {
        store(i & 7, i * 3);
        sum += values[(i + 1) & 7];
    }
    depth++;
    return sum;
}
static volatile int caught;
static void on_alarm(int s) {
    caught += s;
}
int main(void) {
    signal(SIGUSR1, on_alarm);
    raise(SIGUSR1);
    int a = work(10);
    int b = work(20);
    printf("%d %d\n", a, b);
    char *p = malloc(16);
    strcpy(p, "hello");
    printf("%s %d\n", p, values[3]);
    return a == b;
}
