#include "cpu/team.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace fastwave {

void share(int64_t threads, int64_t count, const std::function<void(int64_t)>& work) {
    std::atomic<int64_t> next = 0;
    auto loop = [&] {
        for (int64_t item = next++; item < count; item = next++) work(item);
    };
    std::vector<std::jthread> helpers;  // joined at the end of the scope
    for (int64_t i = 1; i < std::min(threads, count); ++i) helpers.emplace_back(loop);
    loop();
}

}  // namespace fastwave
