// A program with functions to be called from a debugger, well-behaved and other.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>
static std::vector<int> numbers{1, 2, 3};
static std::map<std::string, int> names{{"one", 1}, {"two", 2}};
static int counter = 5;
static std::mutex held;
struct Shape {
    int w, h;
    Shape(int a, int b) : w(a), h(b) {}
    virtual ~Shape() {}
    int area() const { return w * h; }
    virtual const char *name() const { return "shape"; }
};
#define CALLED extern "C" __attribute__((noinline, used))
CALLED int bump(int n) { counter += n; return counter; }
CALLED int sum(const char *s) { int n = 0; while (*s) n += *s++; return n; }
CALLED double half(double d) { return d / 2; }
CALLED long double third(long double d) { return d / 3; }
CALLED int crash() { return *(volatile int *)8; }
CALLED int forever() { for (volatile int i = 0;; i = !i) if (i > 1) return 1; }
CALLED int wait_for_lock() { held.lock(); return 1; }
CALLED int thrower() {
    try {
        throw std::runtime_error("x");
    } catch (std::exception &) {
        return 42;
    }
}
CALLED int inner(int n) { return n + 1; }
CALLED int outer(int n) { return inner(n) * 2; }
CALLED int big() {
    std::vector<std::string> v;
    for (int i = 0; i < 30000; i++) v.push_back(std::to_string(i));
    return v.size();
}
CALLED int own_thread(int) { static thread_local int calls; return ++calls; }
CALLED int opens() { FILE *f = fopen("/dev/null", "r"); return f != nullptr; }
CALLED void leave() { exit(3); }
CALLED void stop_here(int i) { asm volatile("" ::"r"(i)); }
int main() {
    Shape s{3, 4};
    Shape *p = &s;
    std::lock_guard<std::mutex> g(held);
    std::thread t[3];
    int n = 0;
    std::mutex m;
    for (auto &x : t) x = std::thread([&] {
        for (int i = 0; i < 30; i++) {
            std::lock_guard<std::mutex> g(m);
            n += i;
            own_thread(i);
            stop_here(i);
            std::this_thread::yield();
        }
    });
    for (auto &x : t) x.join();
    stop_here(77);
    bump(1);
    printf("%d %d %s %d %zu %d\n", n, counter, p->name(), s.area(), numbers.size() + names.size(), thrower() + outer(1) + big());
    return names.at("one") + numbers[1] == 3 ? 0 : 1;
}
