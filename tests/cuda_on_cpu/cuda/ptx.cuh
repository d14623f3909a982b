// The functions of csrc/cuda/ptx.cuh on the emulated machine. What may wait gives the others a turn.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <utility>

namespace fastwave::cuda {

constexpr int compiled_for = 90;

inline unsigned char* shared_memory() { return emulator::current->block->shared; }

inline uint64_t nanoseconds() { return emulator::rounds * emulator::settings.nanoseconds_per_round; }

inline void require_sm(int sm, const char* what) {
    if (emulator::settings.sm < sm) throw std::logic_error(std::string(what) + " on too old a device");
}

inline uint32_t pack_bfloat16(float low, float high) {
    auto rounded = [](float value) -> uint32_t {
        const uint32_t bits = __float_as_uint(value);
        return value != value ? 0x7fffu : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    };
    return rounded(low) | rounded(high) << 16;
}

inline void mma_bfloat16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    require_sm(80, "mma");
    struct Operands {
        uint32_t a[4], b[2];
    } mine;
    std::memcpy(mine.a, a, sizeof a);
    std::memcpy(mine.b, b, sizeof b);
    const auto all = emulator::exchange(~0u, mine, "mma");
    auto value = [](uint32_t word, int half) { return __uint_as_float(half ? word & 0xffff0000u : word << 16); };
    const unsigned g = emulator::current->lane / 4, q = emulator::current->lane % 4;
    for (int i = 0; i < 4; ++i) {
        const unsigned upper = i / 2, column = 2 * q + i % 2;
        for (int k = 0; k < 16; ++k) {
            const unsigned quad = k % 8 / 2, late = k / 8;
            d[i] += value(all[4 * g + quad].a[2 * late + upper], k % 2) * value(all[4 * column + quad].b[late], k % 2);
        }
    }
}

inline bool in_shared(const void* address) {
    const emulator::Block& block = *emulator::current->block;
    const auto* at = static_cast<const unsigned char*>(address);
    return at >= block.shared && at < block.shared + block.shared_bytes;
}

template <int count>
void ldmatrix(uint32_t (&out)[count], const uint32_t* row) {
    require_sm(75, "ldmatrix");
    const auto rows = emulator::exchange(~0u, row, "ldmatrix");
    const unsigned g = emulator::current->lane / 4, q = emulator::current->lane % 4;
    for (int i = 0; i < count; ++i) {
        if (reinterpret_cast<uintptr_t>(rows[8 * i + g]) % 16) throw std::logic_error("ldmatrix: a row is not aligned");
        if (!in_shared(rows[8 * i + g])) throw std::logic_error("ldmatrix: a row is not in shared memory");
        out[i] = rows[8 * i + g][q];
    }
    __syncwarp();  // nobody writes to a row before all have read it
}

// Copies happen as late as they may: when they are waited for.
inline void copy_async(uint32_t* shared, const uint32_t* global, bool wanted) {
    if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16)
        throw std::logic_error("copy_async: an address is not aligned");
    if (!in_shared(shared) || (wanted && in_shared(global))) throw std::logic_error("copy_async: not global to shared");
    emulator::current->copies.push_back({shared, wanted ? global : nullptr});
    ++emulator::current->uncommitted;
}

inline void commit_copies() { emulator::current->groups.push_back(std::exchange(emulator::current->uncommitted, 0)); }

template <int left>
void wait_copies() {
    emulator::Fiber& self = *emulator::current;
    for (; self.groups.size() > left; self.groups.pop_front())
        for (unsigned i = 0; i < self.groups.front(); ++i, self.copies.pop_front()) {
            const emulator::Copy& copy = self.copies.front();
            const uint4 zeros = {};
            std::memcpy(copy.to, copy.from ? copy.from : &zeros, 16);
        }
}

inline void store_relaxed(uint4* address, const uint4& value) { *address = value; }

inline uint4 load_relaxed(const uint4* address) {
    emulator::spin("load_relaxed");
    return *address;
}

inline void store_release(int* flag, int value) { *flag = value; }

inline int load_acquire(const int* flag) {
    emulator::spin("load_acquire");
    return *flag;
}

inline void trap() { throw std::runtime_error("trap"); }

inline void cluster_sync() {
    require_sm(90, "cluster_sync");
    emulator::arrive(emulator::current->block->cluster->barrier, true, "cluster_sync");
}

// One phase at a time: 1 bit of parity, 1 of arrival, the bytes that are still to come.
struct Mbarrier {
    int32_t bytes;
    uint16_t arrived, parity;
};
static_assert(sizeof(Mbarrier) == sizeof(uint64_t));

inline void settle(Mbarrier& barrier) {
    if (!barrier.arrived || barrier.bytes) return;
    barrier.arrived = 0;
    barrier.parity ^= 1;
}

inline Mbarrier& mbarrier_at(const uint64_t* barrier) {
    return *const_cast<Mbarrier*>(reinterpret_cast<const Mbarrier*>(barrier));
}

inline void mbarrier_init(uint64_t* barrier) {
    require_sm(90, "mbarrier_init");
    mbarrier_at(barrier) = {};
}

inline void mbarrier_expect(uint64_t* barrier, uint32_t bytes) {
    Mbarrier& b = mbarrier_at(barrier);
    if (b.arrived) throw std::logic_error("mbarrier_expect: the thread has arrived already");
    b.arrived = 1;
    b.bytes += bytes;
    settle(b);
}

inline bool mbarrier_try_wait(const uint64_t* barrier, uint32_t parity) {
    emulator::spin("mbarrier_try_wait");
    return mbarrier_at(barrier).parity != parity;
}

inline void st_async(const void* address, const uint4& value, const uint64_t* barrier, uint32_t rank) {
    unsigned char* to = emulator::current->block->cluster->blocks.at(rank)->shared;
    std::memcpy(to + (static_cast<const unsigned char*>(address) - shared_memory()), &value, sizeof value);
    Mbarrier& b = mbarrier_at(
        reinterpret_cast<const uint64_t*>(to + (reinterpret_cast<const unsigned char*>(barrier) - shared_memory())));
    b.bytes -= sizeof value;
    settle(b);
}

}  // namespace fastwave::cuda
