// Four threads, one of which writes where it should not. The program notices much later.
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>
struct Node { long value; long sum; };
static std::mutex lock;
static Node *nodes[4];
static long total;
__attribute__((noinline)) void add(int me, long v) {
    std::lock_guard<std::mutex> g(lock);
    total += v;
    nodes[me]->value = v;
}
__attribute__((noinline)) void corrupt(long *p) {
    *p = 0x6666;
}
void body(int me) {
    for (int i = 0; i < 50; i++) {
        add(me, i * me);
        if (me == 2 && i == 30) corrupt(&nodes[0]->sum);
        if (i % 10 == 0) std::this_thread::yield();
    }
}
int main() {
    for (auto &n : nodes) n = new Node{0, 0x1234};
    std::vector<std::thread> t;
    for (int i = 0; i < 4; i++) t.emplace_back(body, i);
    for (auto &x : t) x.join();
    printf("%ld\n", total);
    for (auto n : nodes) if (n->sum != 0x1234) abort();
    return 0;
}
