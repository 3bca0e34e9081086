// C++ exceptions thrown out of a SIGSEGV and a SIGFPE handler: the unwinder walks through the signal frame.
// build: -fnon-call-exceptions -O1
#include <csignal>
#include <cstdio>
#include <cstring>
#include <stdexcept>
struct Noisy {
    int *count;
    ~Noisy() { ++*count; }
};
static void unblock(int sig) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, sig);
    sigprocmask(SIG_UNBLOCK, &set, nullptr);
}
static void handler(int sig, siginfo_t *info, void *) {
    unblock(sig);
    if (sig == SIGSEGV) throw std::runtime_error(info->si_addr == reinterpret_cast<void *>(0x10) ? "null" : "wild");
    throw std::domain_error("divide");
}
static int __attribute__((noinline)) touch(volatile int *p, int *count) {
    Noisy noisy{count};
    return *p;
}
static int __attribute__((noinline)) divide(int a, volatile int *b, int *count) {
    Noisy noisy{count};
    return a / *b;
}
int main() {
    struct sigaction sa;
    std::memset(&sa, 0, sizeof sa);
    sa.sa_sigaction = handler;
    sa.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &sa, nullptr);
    sigaction(SIGFPE, &sa, nullptr);
    int count = 0, caught = 0;
    volatile int zero = 0;
    for (int i = 0; i < 100; i++) {
        try {
            if (i % 2)
                touch(reinterpret_cast<volatile int *>(0x10), &count);
            else
                divide(i + 1, &zero, &count);
        } catch (const std::exception &e) {
            if (i < 4) std::puts(e.what());
            caught++;
        }
    }
    std::printf("%d caught, %d destructors\n", caught, count);
    return 0;
}
