#include "cpu/team.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace fastwave {

void share(int64_t threads, int64_t count, const std::function<void(int64_t)>& work,
           const std::function<void()>& idle) {
    std::atomic<int64_t> next = 0;
    std::exception_ptr failure;
    std::mutex mutex;
    std::condition_variable finished;
    int64_t running = 0;
    auto loop = [&] {
        try {
            for (int64_t item = next++; item < count; item = next++) work(item);
        } catch (...) {  // no memory, say: in a helper thread it would end the process
            next = count;
            std::lock_guard lock(mutex);
            failure = std::current_exception();
        }
    };
    {
        std::vector<std::jthread> helpers;  // joined at the end of the scope
        for (int64_t i = 1; i < std::min(threads, count); ++i) {
            {
                std::lock_guard lock(mutex);
                ++running;
            }
            helpers.emplace_back([&] {
                loop();
                std::lock_guard lock(mutex);
                --running;
                finished.notify_one();
            });
        }
        loop();
        std::unique_lock lock(mutex);
        while (!finished.wait_for(lock, std::chrono::milliseconds(20), [&] { return running == 0; })) {
            lock.unlock();
            idle();
            lock.lock();
        }
    }
    if (failure) std::rethrow_exception(failure);
}

}  // namespace fastwave
