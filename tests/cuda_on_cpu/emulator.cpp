#include "emulator.h"

#include <algorithm>
#include <random>
#include <span>
#include <sstream>
#include <stdexcept>
#include <utility>

namespace emulator {

Settings settings;
Fiber* current = nullptr;
Dim grid_size, block_size;
uint64_t rounds = 0;

namespace {

constexpr std::size_t stack_bytes = 64 * 1024;
constexpr std::size_t guard_bytes = 128;
constexpr unsigned char poison = 0xff;  // as float32 or bfloat16 a NaN

std::jmp_buf scheduler;
const std::function<void()>* body = nullptr;
std::exception_ptr failure;
uint64_t progress = 0;  // switches out of anything but a spin

void release(Barrier& barrier) {
    if (barrier.arrived == 0 || barrier.arrived < barrier.members) return;
    barrier.arrived = 0;
    ++barrier.generation;
    barrier.combined[barrier.generation & 1] = 1;
}

void leave(Barrier& barrier) {
    --barrier.members;
    release(barrier);
}

void switch_out() {
    if (_setjmp(current->at) == 0) _longjmp(scheduler, 1);
}

void thread_main() {
    try {
        (*body)();
    } catch (...) {
        failure = std::current_exception();
    }
    Fiber& self = *current;
    self.done = true;
    Warp& warp = self.block->warps[self.warp];
    warp.live &= ~(1u << self.lane);
    for (auto& [mask, exchange] : warp.exchanges)
        if (mask >> self.lane & 1) leave(exchange.barrier);
    leave(self.block->barrier);
    leave(self.block->cluster->barrier);
    _longjmp(scheduler, 1);
}

bool ready(const Fiber& fiber) {
    return !fiber.done && !fiber.spun && (!fiber.watched || *fiber.watched != fiber.seen);
}

void resume(Fiber& fiber) {
    current = &fiber;
    if (_setjmp(scheduler) == 0) {
        if (fiber.started) _longjmp(fiber.at, 1);
        fiber.started = true;
        setcontext(fiber.start.get());
    }
    current = nullptr;
    if (failure) std::rethrow_exception(std::exchange(failure, nullptr));
}

// Lets the threads of a warp go on until all of them wait; whether any did. A random one begins.
bool run_warp(std::span<Fiber> warp, std::mt19937_64& random) {
    const unsigned first = settings.seed ? random() % warp.size() : 0;
    bool ran = false, runs = true;
    for (Fiber& fiber : warp) fiber.spun = false;
    while (runs) {
        runs = false;
        for (unsigned i = 0; i < warp.size(); ++i) {
            Fiber& fiber = warp[(first + i) % warp.size()];
            if (!ready(fiber)) continue;
            resume(fiber);
            ran = runs = true;
        }
    }
    return ran;
}

// "block (2, 0): 3 threads in __syncthreads, the first is 5"
std::string waiting(const std::vector<Fiber>& fibers) {
    std::map<std::pair<std::pair<unsigned, unsigned>, std::string>, std::vector<unsigned>> groups;
    for (const Fiber& fiber : fibers)
        if (!fiber.done) groups[{{fiber.block->index.y, fiber.block->index.x}, fiber.where}].push_back(fiber.thread.x);
    std::ostringstream text;
    for (const auto& [key, threads] : groups)
        text << "\n  block (" << key.first.second << ", " << key.first.first << "): " << threads.size()
             << " threads in " << key.second << ", the first is " << threads.front();
    return text.str();
}

// Runs the threads of some blocks to their end, warp by warp.
void run_resident(std::vector<Fiber>& fibers, unsigned block_threads, std::mt19937_64& random) {
    std::vector<std::span<Fiber>> warps;
    for (unsigned block = 0; block < fibers.size(); block += block_threads)
        for (unsigned i = 0; i < block_threads; i += 32)
            warps.emplace_back(&fibers[block + i], std::min(32u, block_threads - i));
    uint64_t last_progress = 0, idle_since = rounds;
    progress = 0;
    while (!warps.empty()) {
        ++rounds;
        if (settings.seed) std::shuffle(warps.begin(), warps.end(), random);
        bool ran = false;
        for (const std::span<Fiber> warp : warps)
            ran |= rounds % warp.front().block->pace != 0 || run_warp(warp, random);
        std::erase_if(warps, [](std::span<Fiber> warp) {
            return std::ranges::all_of(warp, [](const Fiber& fiber) { return fiber.done; });
        });
        if (progress != last_progress) idle_since = rounds;
        last_progress = progress;
        if (!warps.empty() && (!ran || rounds - idle_since > settings.spin_rounds))
            throw std::runtime_error("deadlock:" + waiting(fibers));
    }
}

}  // namespace

bool arrive(Barrier& barrier, bool mine, const char* where) {
    const uint64_t generation = barrier.generation;
    barrier.combined[generation & 1] &= mine;
    ++barrier.arrived;
    ++progress;
    release(barrier);
    if (barrier.generation == generation) {
        current->where = where;
        current->watched = &barrier.generation;
        current->seen = generation;
        switch_out();
        current->watched = nullptr;
    }
    return barrier.combined[generation & 1];
}

void spin(const char* where) {
    current->where = where;
    current->spun = true;
    switch_out();
}

void run(Dim grid, unsigned cluster, Dim block, std::size_t shared_bytes, bool all_resident,
         const std::function<void()>& kernel) {
    if (current) throw std::logic_error("a kernel cannot launch a kernel");
    std::mt19937_64 random(settings.seed);
    rounds = 0;
    body = &kernel;
    grid_size = grid;
    block_size = block;
    const unsigned threads = block.x * block.y * block.z, blocks = grid.x * grid.y * grid.z;
    const unsigned resident = all_resident ? blocks : std::max(cluster, settings.sm_count / cluster * cluster);
    std::vector<std::unique_ptr<unsigned char[]>> stacks;
    for (unsigned first = 0; first < blocks; first += resident) {
        std::vector<std::unique_ptr<Block>> running;
        std::vector<std::unique_ptr<Cluster>> clusters;
        std::vector<Fiber> fibers(std::size_t{std::min(blocks - first, resident)} * threads);
        std::size_t made = 0;
        for (unsigned i = first; i < std::min(blocks, first + resident); ++i) {
            running.push_back(std::make_unique<Block>());
            Block& b = *running.back();
            b.index = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
            b.rank = b.index.x % cluster;
            if (b.rank == 0) clusters.push_back(std::make_unique<Cluster>());
            b.cluster = clusters.back().get();
            b.cluster->blocks.push_back(&b);
            b.cluster->barrier.members += threads;
            b.barrier.members = threads;
            b.warps.resize((threads + 31) / 32);
            b.storage.reset(new unsigned char[shared_bytes + 2 * guard_bytes]);
            std::fill_n(b.storage.get(), shared_bytes + 2 * guard_bytes, poison);
            b.shared_bytes = shared_bytes;
            if (settings.seed) b.pace = 1 + random() % 8;
            b.shared = b.storage.get() + guard_bytes - reinterpret_cast<uintptr_t>(b.storage.get()) % guard_bytes;
            for (unsigned t = 0; t < threads; ++t) {
                Fiber& fiber = fibers[made++];
                fiber.block = &b;
                fiber.thread = {t % block.x, t / block.x % block.y, t / block.x / block.y};
                fiber.warp = t / 32;
                fiber.lane = t % 32;
                b.warps[fiber.warp].live |= 1u << fiber.lane;
                if (stacks.size() < made) stacks.emplace_back(new unsigned char[stack_bytes]);
                fiber.start = std::make_unique<ucontext_t>();
                getcontext(fiber.start.get());
                fiber.start->uc_stack.ss_sp = stacks[made - 1].get();
                fiber.start->uc_stack.ss_size = stack_bytes;
                fiber.start->uc_link = nullptr;
                makecontext(fiber.start.get(), thread_main, 0);
            }
        }
        run_resident(fibers, threads, random);
        for (const auto& b : running)
            if (b->shared[shared_bytes] != poison)
                throw std::runtime_error("a block has written behind its shared memory");
    }
}

}  // namespace emulator
