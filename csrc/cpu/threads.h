// Threads of the CPU kernels.
#pragma once

#include <atomic>
#include <chrono>
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

// A Team of threads that wait for work spinning, then asleep. The leader, who calls, never waits for a helper that has
// not begun: it takes over the parts that nobody has claimed, so that a helper without a core to run on costs next to
// nothing; and where one that has begun loses its core, it goes on alone for a while. A helper claims the part of its
// own number, so that each core keeps seeing the same weights.
class Helpers : public Team {
public:
    explicit Helpers(int64_t size);
    ~Helpers();
    Helpers(const Helpers&) = delete;

private:
    using Clock = std::chrono::steady_clock;
    using Part = void (*)(void*, int64_t, int64_t);

    bool awake();
    void wake();
    uint64_t post(Part part, void* context, bool together);
    bool claim(uint64_t seen, int64_t index);
    void finish();
    void lead(Part part, void* context);
    void lead_together(Part part, void* context);
    void lead_pipeline(Line line, Part part, void* context);
    void follow(int64_t index);
    int64_t turns(int64_t stage) const;
    bool advance(int64_t index);
    void meet_as(int64_t index);
    void help(int64_t index);

    struct alignas(64) Count {
        std::atomic<uint64_t> value = 0;
    };
    struct alignas(64) Stage {
        std::atomic<int64_t> turns = 0;  // done
        std::atomic<bool> taken = false;
    };

    // What is to be done: its number in the upper half, a bit per claimed part in the lower.
    alignas(64) std::atomic<uint64_t> job_ = 0xffffffffu;
    std::atomic<uint64_t> verdict_ = 0;  // twice the number of the last job done together, plus 1 if it is on
    Part part_ = nullptr;
    void* context_ = nullptr;
    bool together_ = false;
    Count finished_;  // parts that helpers have done, of all jobs
    Count met_[max_team];
    Line line_ = {};  // at hand
    Part line_part_ = nullptr;
    void* line_context_ = nullptr;
    Stage stages_[max_stages];
    alignas(64) std::atomic<int64_t> asleep_ = 0;
    std::atomic<bool> ended_ = false;
    std::mutex mutex_;
    std::condition_variable wake_;
    alignas(64) uint64_t helped_ = 0;  // the leader's own: parts that helpers took, and when to wake them
    uint64_t helped_then_ = 0;
    Clock::time_point begun_, wake_at_, alone_until_;  // begun_: the job at hand
    Clock::duration sleep_, penalty_;
    bool stalled_ = false;  // a helper kept the leader waiting
    int64_t in_a_row_ = 0;
    std::vector<std::jthread> threads_;
};

}  // namespace fastwave
