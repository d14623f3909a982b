// Threads of the CPU kernels.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "cpu/team.h"

namespace fastwave {

// Calls work(item) for items 0..count-1 on up to `threads` threads, the caller among them; returns when all are done.
// What a call throws ends the rest, and comes out here. While the caller has nothing left to do but wait, it calls
// `idle` now and then.
void share(int64_t threads, int64_t count, const std::function<void(int64_t)>& work, const std::function<void()>& idle);

// A Team of threads that wait for work spinning, then asleep. The leader, who calls `split`, never waits for a helper
// that has not begun: it takes over the parts that nobody has claimed, so that a helper without a core to run on costs
// next to nothing. A helper claims the part of its own number, so that each core keeps seeing the same weights.
class Helpers : public Team {
public:
    explicit Helpers(int64_t size);
    ~Helpers();
    Helpers(const Helpers&) = delete;

private:
    using Part = void (*)(void*, int64_t, int64_t);

    void lead(Part part, void* context);
    void help(int64_t index);
    bool claim(uint64_t& seen, int64_t index);

    // What is split now: its number in the upper half, a bit per claimed part in the lower.
    alignas(64) std::atomic<uint64_t> job_ = 0xffffffffu;
    Part part_ = nullptr;
    void* context_ = nullptr;
    alignas(64) std::atomic<int64_t> finished_ = 0;  // parts that helpers have done, of all jobs
    alignas(64) std::atomic<int64_t> asleep_ = 0;
    std::atomic<bool> ended_ = false;
    alignas(64) int64_t helped_ = 0;  // the leader's own: parts that helpers took, and when to wake them
    int64_t helped_then_ = 0, until_wake_ = 0, sleep_ = 32;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<std::jthread> threads_;
};

}  // namespace fastwave
