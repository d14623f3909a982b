#include "cpu/team.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace fastwave {

void share(int64_t threads, int64_t count, const std::function<void(int64_t)>& work) {
    std::atomic<int64_t> next = 0;
    std::exception_ptr failure;
    std::mutex failing;
    auto loop = [&] {
        try {
            for (int64_t item = next++; item < count; item = next++) work(item);
        } catch (...) {  // no memory, say: in a helper thread it would end the process
            next = count;
            std::lock_guard lock(failing);
            failure = std::current_exception();
        }
    };
    {
        std::vector<std::jthread> helpers;  // joined at the end of the scope
        for (int64_t i = 1; i < std::min(threads, count); ++i) helpers.emplace_back(loop);
        loop();
    }
    if (failure) std::rethrow_exception(failure);
}

}  // namespace fastwave
