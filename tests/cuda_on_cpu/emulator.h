// CUDA threads on the host: each is a fiber, and fibers take turns on one processor, from one point where a thread may
// wait to the next. So a kernel's indexing, barriers and arithmetic are run as written, and the same seed gives the
// same run. What it cannot find: mistakes of memory order. Every store is seen by everybody at once, in program order,
// so a missing fence or a race between such points does not show. Whether a kernel fits the chip, it does not know
// either.
//
// What errors here are: a deadlock (with who waits where), a write behind a block's shared memory, a fault of the
// host's (no guard stands around global memory), a kernel that calls what no emulated instruction stands for. Fresh
// shared memory is poisoned with NaNs.
#pragma once

#include <ucontext.h>

#include <csetjmp>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <vector>

namespace emulator {

struct Dim {
    unsigned x = 1, y = 1, z = 1;
};

// Released when all its members are there; a member that ends its kernel is no member any more.
struct Barrier {
    unsigned members = 0, arrived = 0;
    uint64_t generation = 0;
    int combined[2] = {1, 1};  // what arrivals say, and'ed, by generation
};

struct Warp {
    struct Exchange {
        Barrier barrier;
        alignas(16) unsigned char slots[2][32][64];
    };
    uint32_t live = 0;
    std::map<uint32_t, Exchange> exchanges;  // by the mask of the lanes that take part
};

struct Block;

struct Cluster {
    Barrier barrier;
    std::vector<Block*> blocks;
};

struct Block {
    Dim index;
    unsigned rank = 0;  // in its cluster
    Barrier barrier;
    Cluster* cluster = nullptr;
    std::vector<Warp> warps;
    unsigned char* shared = nullptr;
    std::size_t shared_bytes = 0;
    unsigned pace = 1;  // it runs in every so many-th round: blocks that wait for others must say so
    std::unique_ptr<unsigned char[]> storage;
};

struct Copy {  // 16 bytes; null: zeros
    void* to;
    const void* from;
};

struct Fiber {
    Block* block = nullptr;
    Dim thread;
    unsigned lane = 0, warp = 0;
    bool started = false, done = false;
    bool spun = false;                  // waits for its warp's next turn
    const uint64_t* watched = nullptr;  // waits until this changes
    uint64_t seen = 0;
    const char* where = "";       // it waits, or spins
    std::deque<Copy> copies;      // asynchronous ones under way, the oldest first
    std::deque<unsigned> groups;  // how many of them belong to each group
    unsigned uncommitted = 0;     // and to none yet
    std::jmp_buf at;
    std::unique_ptr<ucontext_t> start;
};

// What a launch sees of the machine, and how it goes.
struct Settings {
    uint64_t seed = 0;  // of the order in which threads take turns
    int sm = 90, sm_count = 8, shared_bytes = 227 * 1024;
    uint64_t nanoseconds_per_round = 100'000;  // of the clock that a waiting kernel reads
    uint64_t spin_rounds = 1'000'000;          // without an end, after which spinning is a deadlock
};
extern Settings settings;

extern Fiber* current;
extern Dim grid_size, block_size;
extern uint64_t rounds;

// Runs kernel() in every thread of a grid.
void run(Dim grid, unsigned cluster, Dim block, std::size_t shared_bytes, bool all_resident,
         const std::function<void()>& kernel);

// Waits until all members have arrived; returns the and of what they say.
bool arrive(Barrier& barrier, bool mine, const char* where);

// Lets the others go on, in a loop that waits for what another thread writes.
void spin(const char* where);

// What each lane of the mask gives, when all are there; valid until the lane's next exchange.
template <class T>
struct Exchanged {
    const Warp::Exchange& exchange;
    uint64_t generation;
    const T& operator[](unsigned lane) const {
        return *reinterpret_cast<const T*>(exchange.slots[generation & 1][lane % 32]);
    }
};

template <class T>
Exchanged<T> exchange(uint32_t mask, const T& mine, const char* where) {
    static_assert(sizeof(T) <= sizeof(Warp::Exchange::slots[0][0]));
    Warp& warp = current->block->warps[current->warp];
    Warp::Exchange& shared = warp.exchanges[mask];
    shared.barrier.members = __builtin_popcount(mask & warp.live);
    const uint64_t generation = shared.barrier.generation;
    std::memcpy(shared.slots[generation & 1][current->lane], &mine, sizeof mine);
    arrive(shared.barrier, true, where);
    return {shared, generation};
}

}  // namespace emulator
