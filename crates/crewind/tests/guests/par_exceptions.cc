// C++ exceptions thrown in several threads at once, through frames with destructors, passed between threads; a pool of std::thread
// that steals work; thread_local objects; shared_ptr counts.
// varies
// build: -std=c++17
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

static std::uint64_t mix(std::uint64_t digest, std::uint64_t value) {
    digest = (digest ^ value) * 0x9e3779b97f4a7c15;
    return digest ^ digest >> 29;
}
static std::atomic<long> unwound{0}, released{0}, local_ends{0};
static long racy;
struct Frame {
    ~Frame() {
        unwound++;
        *static_cast<volatile long *>(&racy) += 1;
    }
};
struct Local {
    long uses = 0;
    ~Local() { local_ends += uses; }
};
static thread_local Local local;
[[gnu::noinline]] static int deep(int n, int value) {
    Frame frame;
    if (n == 0) throw std::runtime_error(std::to_string(value));
    return deep(n - 1, value) + 1;
}
struct Held {
    std::vector<int> data;
    explicit Held(int n) : data(n % 100 + 1, n) {}
    ~Held() { released++; }
};
struct Worker {
    std::mutex mutex;
    std::deque<int> jobs;
    std::uint64_t seen = 0;
};
int main(int argc, char **argv) {
    int threads = argc > 1 && std::atoi(argv[1]) > 0 ? std::atoi(argv[1]) : 3;
    int rounds = argc > 2 && std::atoi(argv[2]) > 0 ? std::atoi(argv[2]) : 1500;
    std::vector<Worker> workers(threads);
    for (int i = 0; i < rounds; i++) workers[i % threads].jobs.push_back(i);
    std::atomic<int> left{rounds};
    std::shared_ptr<Held> current = std::make_shared<Held>(0);
    std::mutex current_mutex;
    std::vector<std::exception_ptr> kept(rounds);
    std::vector<std::thread> all;
    for (int me = 0; me < threads; me++)
        all.emplace_back([&, me] {
            std::uint64_t seen = me;
            while (left > 0) {
                int job = -1;
                for (int k = 0; k < threads && job < 0; k++) {
                    Worker &from = workers[(me + k) % threads];
                    std::lock_guard<std::mutex> guard(from.mutex);
                    if (from.jobs.empty()) continue;
                    job = k == 0 ? from.jobs.back() : from.jobs.front();
                    k == 0 ? from.jobs.pop_back() : from.jobs.pop_front();
                }
                if (job < 0) {
                    std::this_thread::yield();
                    continue;
                }
                local.uses++;
                try {
                    deep(job % 12, job);
                } catch (const std::exception &e) {
                    seen = mix(seen, std::atoi(e.what()));
                    kept[job] = std::current_exception();
                }
                std::shared_ptr<Held> mine;
                {
                    std::lock_guard<std::mutex> guard(current_mutex);
                    mine = current;
                    if (job % 3 == 0) current = std::make_shared<Held>(job);
                }
                seen = mix(seen, mine->data[0]);
                left--;
            }
            workers[me].seen = seen;
        });
    for (auto &thread : all) thread.join();
    long sum = 0;
    for (auto &exception : kept) {
        try {
            std::rethrow_exception(exception);
        } catch (const std::runtime_error &e) {
            sum += std::atoi(e.what());
        }
    }
    current.reset();
    std::printf("seen:");
    for (auto &worker : workers) std::printf(" %016lx", worker.seen);
    std::printf("\nunwound %ld, released %ld, uses %ld, sum %ld, racy %ld\n", unwound.load(), released.load(), local_ends.load(), sum, racy);
    return sum == (long)rounds * (rounds - 1) / 2 && local_ends == rounds ? 0 : 99;
}
