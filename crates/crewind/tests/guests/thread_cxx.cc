// std::thread, futures, exceptions across threads, thread_local with destructors, condition variables.
// build: -std=c++17
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <functional>
#include <future>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

static std::atomic<int> destroyed{0};
struct Local {
    int value = 3;
    ~Local() { destroyed += value; }
};
static thread_local Local local;

class Pool {
  public:
    explicit Pool(int n) {
        for (int i = 0; i < n; i++)
            workers.emplace_back([this] { run(); });
    }
    ~Pool() {
        {
            std::lock_guard<std::mutex> guard(mutex);
            done = true;
        }
        changed.notify_all();
        for (auto &worker : workers) worker.join();
    }
    void add(std::function<void()> job) {
        {
            std::lock_guard<std::mutex> guard(mutex);
            jobs.push_back(std::move(job));
        }
        changed.notify_one();
    }

  private:
    void run() {
        local.value = 1;
        for (;;) {
            std::unique_lock<std::mutex> guard(mutex);
            changed.wait(guard, [this] { return done || !jobs.empty(); });
            if (jobs.empty()) return;
            auto job = std::move(jobs.front());
            jobs.pop_front();
            guard.unlock();
            job();
        }
    }
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<std::function<void()>> jobs;
    std::vector<std::thread> workers;
    bool done = false;
};

int main() {
    std::atomic<long> total{0};
    {
        Pool pool(4);
        for (int i = 0; i < 1000; i++) pool.add([&total, i] { total += i; });
    }
    std::printf("total %ld, destroyed %d\n", total.load(), destroyed.load());
    auto failing = std::async(std::launch::async, []() -> int { throw std::runtime_error("from another thread"); });
    try {
        failing.get();
    } catch (const std::exception &e) {
        std::printf("%s\n", e.what());
    }
    std::vector<std::future<long>> parts;
    for (int p = 0; p < 4; p++)
        parts.push_back(std::async(std::launch::async, [p] {
            std::vector<long> v(10000);
            std::iota(v.begin(), v.end(), p);
            return std::accumulate(v.begin(), v.end(), 0L);
        }));
    long sum = 0;
    for (auto &part : parts) sum += part.get();
    std::printf("sum %ld\n", sum);
    return 0;
}
