#include "cpu/threads.h"

#include <algorithm>
#include <exception>

namespace fastwave {

using namespace std::chrono_literals;

namespace {

constexpr int spins_per_yield = 256;         // a few microseconds
constexpr int yields = 64;                   // of an idle helper before it sleeps
constexpr int spins_to_join = 200;           // that the leader gives a helper
constexpr int stall = 32 * spins_per_yield;  // turns of the leader that are no small matter
constexpr int64_t many = 64;                 // jobs
constexpr auto shortest_penalty = 2ms, longest_penalty = 256ms;
constexpr auto shortest_sleep = 500us;  // before a sleeping helper is woken,
constexpr auto longest_sleep = 1s;      // doubled as long as it has been of no help

// The n-th turn of a loop that waits. Now and then it lets others have the core: the one waited for may want it.
void pause(int n) {
    if (n % spins_per_yield == spins_per_yield - 1) {
        std::this_thread::yield();
        return;
    }
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

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
            try {
                helpers.emplace_back([&] {
                    loop();
                    std::lock_guard lock(mutex);
                    --running;
                    finished.notify_one();
                });
            } catch (...) {  // no thread to be had, or no memory for one: those that there are do the work
                break;
            }
            std::lock_guard lock(mutex);
            ++running;
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

Helpers::Helpers(int64_t size) : sleep_(shortest_sleep / 2), penalty_(shortest_penalty) {
    Team::split = [](Team* team, Part part, void* context) { static_cast<Helpers*>(team)->lead(part, context); };
    Team::together = [](Team* team, Part part, void* context) {
        static_cast<Helpers*>(team)->lead_together(part, context);
    };
    Team::pipeline = [](Team* team, Line line, Part part, void* context) {
        static_cast<Helpers*>(team)->lead_pipeline(line, part, context);
    };
    Team::meet = [](Team* team, int64_t index) { static_cast<Helpers*>(team)->meet_as(index); };
    try {
        for (int64_t i = 1; i < size; ++i) threads_.emplace_back([this, i] { help(i); });
    } catch (...) {  // no thread to be had, or no memory for one: the team is smaller
    }
    Team::size = 1 + static_cast<int64_t>(threads_.size());  // which a helper reads when there is a job
}

Helpers::~Helpers() {
    {
        std::lock_guard lock(mutex_);
        ended_ = true;
    }
    wake_.notify_all();
}

// Whether it is worth posting a job. Sleeping helpers are woken now and then, seldom where that was of no use.
bool Helpers::awake() {
    begun_ = Clock::now();
    if (begun_ < alone_until_) return false;
    const int64_t asleep = asleep_.load(std::memory_order_relaxed);
    if (!asleep) return true;
    if (begun_ < wake_at_) return asleep < size - 1;
    sleep_ = helped_ == helped_then_ ? std::min<Clock::duration>(2 * sleep_, longest_sleep) : shortest_sleep;
    helped_then_ = helped_;
    wake_at_ = begun_ + sleep_;
    wake();
    return true;
}

void Helpers::wake() {
    {
        std::lock_guard lock(mutex_);
    }  // one that is about to sleep does so before the call
    wake_.notify_all();
}

// Returns the job as it stands when every part is claimed.
uint64_t Helpers::post(Part part, void* context, bool together) {
    part_ = part;
    context_ = context;
    together_ = together;
    const uint64_t number = (job_.load(std::memory_order_relaxed) >> 32) + 1;
    const uint64_t unclaimed = ((uint64_t{1} << size) - 1) & ~uint64_t{1};  // the first part is the leader's
    job_.store(number << 32 | (0xffffffffu & ~unclaimed), std::memory_order_release);
    return number << 32 | 0xffffffffu;
}

// Takes part `index` of the job that was seen, unless it is taken or the job is another by now.
bool Helpers::claim(uint64_t seen, int64_t index) {
    const uint64_t number = seen >> 32, bit = uint64_t{1} << index;
    while (seen >> 32 == number && !(seen & bit))
        if (job_.compare_exchange_weak(seen, seen | bit, std::memory_order_acq_rel)) return true;
    return false;
}

// The leader's end of a job: waits for the helpers. One that takes twice as long as the leader has lost its core to
// another process, and may again: then the leader works alone, longer each time until many jobs have gone well in a
// row.
void Helpers::finish() {
    const Clock::time_point done = Clock::now();
    int turns = 0;
    for (; finished_.value.load(std::memory_order_acquire) != helped_; ++turns) pause(turns);
    if (stalled_ || (turns > stall && Clock::now() - done > done - begun_)) {
        alone_until_ = Clock::now() + penalty_;
        penalty_ = std::min<Clock::duration>(2 * penalty_, longest_penalty);
        in_a_row_ = 0;
        stalled_ = false;
    } else if (++in_a_row_ == many) {
        penalty_ = shortest_penalty;
    }
}

void Helpers::lead(Part part, void* context) {
    if (!awake()) {
        for (int64_t i = 0; i < size; ++i) part(context, i, size);
        return;
    }
    post(part, context, false);
    part(context, 0, size);
    for (int64_t i = 1; i < size; ++i) {
        if (claim(job_.load(std::memory_order_relaxed), i))
            part(context, i, size);
        else
            ++helped_;
    }
    finish();
}

void Helpers::lead_together(Part part, void* context) {
    if (!awake()) return part(context, 0, 1);
    const uint64_t complete = post(part, context, true);
    for (int i = 0; i < spins_to_join && job_.load(std::memory_order_acquire) != complete; ++i) pause(i);
    int64_t here = 0;
    for (int64_t i = 1; i < size; ++i)
        if (!claim(job_.load(std::memory_order_acquire), i)) ++here;
    const bool on = here == size - 1;
    helped_ += here;
    verdict_.store(2 * (complete >> 32) + on, std::memory_order_release);
    part(context, 0, on ? size : 1);
    finish();
}

// A line has a job of its own: whoever comes follows it to its end, and finds work that is ready and not taken.
void Helpers::lead_pipeline(Line line, Part part, void* context) {
    line_ = line;
    line_part_ = part;
    line_context_ = context;
    for (Stage& stage : stages_) stage.turns.store(0, std::memory_order_relaxed);
    if (asleep_.load(std::memory_order_relaxed)) wake();
    post([](void* self, int64_t index, int64_t) { static_cast<Helpers*>(self)->follow(index); }, this, false);
    follow(0);
    for (int64_t i = 1; i < size; ++i)
        if (!claim(job_.load(std::memory_order_relaxed), i)) ++helped_;
    for (int i = 0; finished_.value.load(std::memory_order_acquire) != helped_; ++i) pause(i);
}

// A thread's share of a line: its own stages, the last first, and those of others where its own must wait.
void Helpers::follow(int64_t index) {
    const int64_t first = line_.stages * index / size, end = line_.stages * (index + 1) / size;
    auto some = [&] {
        for (int64_t i = end - 1; i >= first; --i)
            if (advance(i)) return true;
        for (int64_t i = line_.stages - 1; i >= 0; --i)
            if (advance(i)) return true;
        return false;
    };
    for (int waits = 0; turns(line_.stages - 1) < line_.turns;) {
        if (some())
            waits = 0;
        else
            pause(waits++);
    }
}

int64_t Helpers::turns(int64_t stage) const { return stages_[stage].turns.load(std::memory_order_acquire); }

// Does a stage's next turn, if it is ready and nobody else is at it.
bool Helpers::advance(int64_t index) {
    Stage& stage = stages_[index];
    const int64_t turn = turns(index);
    if (turn == line_.turns || (index > 0 && turns(index - 1) <= turn) ||
        (index + 1 < line_.stages && turns(index + 1) + line_.slack == turn) ||
        stage.taken.load(std::memory_order_relaxed) || stage.taken.exchange(true, std::memory_order_acquire))
        return false;
    const bool still = turns(index) == turn;
    if (still) {
        line_part_(line_context_, index, turn);
        stage.turns.store(turn + 1, std::memory_order_release);
    }
    stage.taken.store(false, std::memory_order_release);
    return still;
}

void Helpers::meet_as(int64_t index) {
    const uint64_t mine = met_[index].value.load(std::memory_order_relaxed) + 1;
    met_[index].value.store(mine, std::memory_order_release);
    int turns = 0;
    for (int64_t i = 0; i < size; ++i)
        for (; met_[i].value.load(std::memory_order_acquire) < mine; ++turns) pause(turns);
    if (index == 0 && turns > stall) stalled_ = true;
}

void Helpers::help(int64_t index) {
    uint64_t last = 0;
    for (int idle = 0; !ended_.load(std::memory_order_relaxed); ++idle) {
        const uint64_t seen = job_.load(std::memory_order_acquire);
        if (seen >> 32 != last) {
            last = seen >> 32;
            idle = 0;
            if (!claim(seen, index)) continue;
            bool on = true;
            if (together_) {
                uint64_t verdict = 0;
                for (int i = 0; (verdict = verdict_.load(std::memory_order_acquire)) >> 1 != last; ++i) pause(i);
                on = verdict & 1;
            }
            if (on) part_(context_, index, size);
            finished_.value.fetch_add(1, std::memory_order_release);
        } else if (idle < yields * spins_per_yield) {
            pause(idle);
        } else {
            std::unique_lock lock(mutex_);
            if (ended_) return;
            ++asleep_;
            wake_.wait(lock);
            --asleep_;
            idle = 0;
        }
    }
}

}  // namespace fastwave
