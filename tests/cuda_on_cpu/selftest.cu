// The emulator's own instructions, each against what it stands for.
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/hop.cuh"
#include "cuda/launch.cuh"
#include "selftest.h"

namespace selftest {

namespace {

using namespace fastwave::cuda;

struct Params {
    float* out;
    uint4* boxes;
};

void expect(bool right, const char* what) {
    if (!right) throw std::runtime_error(std::string("the emulator is wrong: ") + what);
}

// Each thread reads what the next one wrote, several times over.
void barrier_kernel(const Params p) {
    float* shared = reinterpret_cast<float*>(shared_memory());
    float value = static_cast<float>(threadIdx.x);
    for (int i = 0; i < 5; ++i) {
        shared[threadIdx.x] = value;
        __syncthreads();
        value = shared[(threadIdx.x + 1) % blockDim.x];
        __syncthreads();
    }
    p.out[blockIdx.x * blockDim.x + threadIdx.x] = value;
}

void barrier() {
    std::vector<float> out(3 * 70);
    launch(barrier_kernel, {.blocks = 3, .threads = 70, .shared_bytes = 280}, nullptr, Params{out.data(), nullptr});
    for (int i = 0; i < 210; ++i) expect(out[i] == (i % 70 + 5) % 70, "__syncthreads");
}

void vote_kernel(const Params p) {
    const bool all = __syncthreads_and(1), not_all = __syncthreads_and(threadIdx.x != 40);
    p.out[threadIdx.x] = all && !not_all;
}

void vote() {
    std::vector<float> out(64);
    launch(vote_kernel, {.blocks = 1, .threads = 64}, nullptr, Params{out.data(), nullptr});
    for (float right : out) expect(right == 1.f, "__syncthreads_and");
}

void shuffle_kernel(const Params p) {
    const float mine = static_cast<float>(threadIdx.x);
    const float flipped = __shfl_xor_sync(~0u, mine, 5), third = __shfl_sync(~0u, mine, 3);
    __syncwarp();
    p.out[threadIdx.x] = flipped + 1000.f * third;
}

void shuffle() {
    std::vector<float> out(64);
    launch(shuffle_kernel, {.blocks = 1, .threads = 64}, nullptr, Params{out.data(), nullptr});
    for (int i = 0; i < 64; ++i) expect(out[i] == (i ^ 5) + 1000.f * (i / 32 * 32 + 3), "shuffles");
}

void poison_kernel(const Params p) {
    const float* shared = reinterpret_cast<const float*>(shared_memory());
    p.out[threadIdx.x] = shared[threadIdx.x] != shared[threadIdx.x];
}

void poison() {
    std::vector<float> out(32);
    launch(poison_kernel, {.blocks = 1, .threads = 32, .shared_bytes = 128}, nullptr, Params{out.data(), nullptr});
    for (float nan : out) expect(nan == 1.f, "fresh shared memory holds something");
}

// a(i, k) = i + 2k, b(k, j) = k - 3j: small integers, exact in bfloat16.
void mma_kernel(const Params p) {
    const int g = threadIdx.x / 4, q = threadIdx.x % 4;
    auto a = [](int i, int k) { return static_cast<float>(i + 2 * k); };
    auto b = [](int k, int j) { return static_cast<float>(k - 3 * j); };
    uint32_t wa[4], wb[2];
    for (int i = 0; i < 4; ++i) {
        const int row = g + i % 2 * 8, k = 2 * q + i / 2 * 8;
        wa[i] = pack_bfloat16(a(row, k), a(row, k + 1));
    }
    for (int i = 0; i < 2; ++i) wb[i] = pack_bfloat16(b(2 * q + 8 * i, g), b(2 * q + 8 * i + 1, g));
    float d[4] = {1.f, 1.f, 1.f, 1.f};
    mma_bfloat16(d, wa, wb);
    for (int i = 0; i < 4; ++i) p.out[(g + i / 2 * 8) * 8 + 2 * q + i % 2] = d[i];
}

void mma() {
    std::vector<float> out(128);
    launch(mma_kernel, {.blocks = 1, .threads = 32}, nullptr, Params{out.data(), nullptr});
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 8; ++j) {
            float sum = 1.f;
            for (int k = 0; k < 16; ++k) sum += static_cast<float>((i + 2 * k) * (k - 3 * j));
            expect(out[i * 8 + j] == sum, "mma");
        }
}

// Columns of 8 words, which hold their place: the matrices of a warp's columns 0 to 7 and 8 to 15.
void ldmatrix_kernel(const Params p) {
    constexpr int stride = 12;
    auto* words = reinterpret_cast<uint32_t*>(shared_memory());
    for (int i = threadIdx.x; i < 16 * stride; i += 32) words[i] = i;
    __syncwarp();
    const int lane = threadIdx.x, g = lane / 4, q = lane % 4;
    uint32_t two[2], four[4];
    ldmatrix(two, words + lane % 8 * stride + lane / 8 % 2 * 4);
    ldmatrix(four, words + (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 4);
    bool right = true;
    for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t expected = (g + i / 2 * 8) * stride + i % 2 * 4 + q;
        right &= four[i] == expected && (i > 1 || two[i] == expected);
    }
    p.out[lane] = right;
}

void matrices() {
    std::vector<float> out(32);
    launch(ldmatrix_kernel, {.blocks = 1, .threads = 32, .shared_bytes = 16 * 12 * 4}, nullptr,
           Params{out.data(), nullptr});
    for (float right : out) expect(right == 1.f, "ldmatrix");
}

// Two groups of copies; the second is not waited for at first.
void copies_kernel(const Params p) {
    auto* shared = reinterpret_cast<uint32_t*>(shared_memory());
    const auto* from = reinterpret_cast<const uint32_t*>(p.boxes);
    const int lane = threadIdx.x;
    copy_async(shared + 8 * lane, from + 4 * lane, true);
    commit_copies();
    copy_async(shared + 8 * lane + 4, from + 4 * lane, lane % 2);
    commit_copies();
    wait_copies<1>();
    __syncthreads();
    const int other = (lane + 1) % 32;
    const bool early = shared[8 * other + 3] == from[4 * other + 3];
    __syncthreads();
    wait_copies<0>();
    __syncthreads();
    p.out[lane] = early && shared[8 * other + 7] == (other % 2 ? from[4 * other + 3] : 0);
}

void copies() {
    std::vector<float> out(32);
    std::vector<uint4> boxes(32);
    for (uint32_t i = 0; i < 32; ++i) boxes[i] = {i, i + 1, i + 2, i + 3};
    launch(copies_kernel, {.blocks = 1, .threads = 32, .shared_bytes = 1024}, nullptr,
           Params{out.data(), boxes.data()});
    for (float right : out) expect(right == 1.f, "copy_async");
}

// What is not waited for is not there.
void early_kernel(const Params p) {
    auto* shared = reinterpret_cast<uint32_t*>(shared_memory());
    copy_async(shared, reinterpret_cast<const uint32_t*>(p.boxes), true);
    commit_copies();
    wait_copies<1>();
    p.out[0] = shared[0] == 7 ? 1.f : 2.f;
    wait_copies<0>();
    p.out[1] = shared[0] == 7;
}

void early() {
    float out[2];
    uint4 box = {7, 7, 7, 7};
    launch(early_kernel, {.blocks = 1, .threads = 1, .shared_bytes = 16}, nullptr, Params{out, &box});
    expect(out[0] == 2.f && out[1] == 1.f, "wait_copies");
}

// Blocks draw numbers, write them down, and raise a flag; the last block waits for all flags.
void draw_kernel(const Params p) {
    auto* count = reinterpret_cast<int*>(p.boxes);
    int* flags = count + 1;
    if (threadIdx.x > 0) return;
    const int mine = atomicAdd(count, 1);
    p.out[mine] = static_cast<float>(mine + 1);
    store_release(flags + mine, 1);
    if (blockIdx.x > 0) return;
    for (unsigned i = 0; i < gridDim.x; ++i)
        while (load_acquire(flags + i) == 0) continue;
    float sum = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) sum += p.out[i];
    p.out[gridDim.x] = sum;
}

void flags() {
    std::vector<float> out(8);
    std::vector<uint4> boxes(2);
    launch(draw_kernel, {.blocks = 7, .threads = 32}, nullptr, Params{out.data(), boxes.data()});
    expect(out[7] == 28.f, "atomicAdd and flags");
}

// A message goes round the blocks, each of which adds 1 to its words.
template <class Hop>
void ring_kernel(const Params p) {
    constexpr int words = 8, rounds = 4;
    uint32_t* message = reinterpret_cast<uint32_t*>(shared_memory());
    uint64_t* barriers = reinterpret_cast<uint64_t*>(message + words);
    const int stage = blockIdx.x, stages = gridDim.x;
    const Place place{stage, 1, {words, words, words}, barriers, p.boxes, 1};
    Hop hop(place);
    hop.open();
    for (int i = 0; i < rounds; ++i) {
        if (stage == 0 && i == 0) {
            if (threadIdx.x < words) message[threadIdx.x] = threadIdx.x;
            __syncthreads();
        } else if (!hop.receive(residual_message, 0, stage ? i : i - 1, message)) {
            p.out[0] = -1.f;
        }
        if (threadIdx.x < words) message[threadIdx.x] += 1;
        __syncthreads();
        if (stage + 1 < stages || i + 1 < rounds) hop.send((stage + 1) % stages, residual_message, 0, i, message);
    }
    hop.close();
    if (stage + 1 == stages && threadIdx.x < words) p.out[threadIdx.x] = static_cast<float>(message[threadIdx.x]);
}

template <class Hop>
void ring(const Grid& grid) {
    std::vector<float> out(8);
    std::vector<uint4> boxes(Mailbox::packets(5, 1, 8));
    launch(ring_kernel<Hop>, grid, nullptr, Params{out.data(), boxes.data()});
    for (int i = 0; i < 8; ++i) expect(out[i] == i + 20.f, "a message's way");
}

void mailbox() { ring<Mailbox>({.blocks = 5, .threads = 64, .all_resident = true, .shared_bytes = 256}); }
void cluster() { ring<ClusterHop>({.blocks = 5, .threads = 64, .cluster = 5, .shared_bytes = 256}); }

// Nobody sends.
void lonely_kernel(const Params p) {
    uint32_t* message = reinterpret_cast<uint32_t*>(shared_memory());
    const Place place{0, 1, {8, 8, 8}, nullptr, p.boxes, 1};
    Mailbox hop(place);
    const bool came = hop.receive(residual_message, 0, 0, message);
    if (threadIdx.x == 0) p.out[0] = came ? 1.f : 2.f;
}

void patience() {
    float out = 0.f;
    std::vector<uint4> boxes(Mailbox::packets(1, 1, 8));
    launch(lonely_kernel, {.blocks = 1, .threads = 32, .shared_bytes = 256}, nullptr, Params{&out, boxes.data()});
    expect(out == 2.f, "a wait without an end");
}

// ---- what must be an error
// -------------------------------------------------------------------------------------------

void split_kernel(const Params p) {
    if (threadIdx.x < 7)
        __syncthreads();
    else
        __syncwarp();
    p.out[0] = 1.f;
}

void deadlock() {
    float out;
    launch(split_kernel, {.blocks = 2, .threads = 32}, nullptr, Params{&out, nullptr});
}

void spinning_kernel(const Params p) {
    while (load_relaxed(p.boxes).x == 0) continue;
}

void spinning() {
    emulator::settings.spin_rounds = 1000;
    uint4 box = {};
    launch(spinning_kernel, {.blocks = 1, .threads = 3}, nullptr, Params{nullptr, &box});
}

void trap_kernel(const Params) { trap(); }

void trapped() { launch(trap_kernel, {.blocks = 1, .threads = 1}, nullptr, Params{}); }

void unaligned_kernel(const Params p) {
    copy_async(reinterpret_cast<uint32_t*>(shared_memory()) + 1, reinterpret_cast<const uint32_t*>(p.boxes), true);
}

void unaligned() {
    uint4 box = {};
    launch(unaligned_kernel, {.blocks = 1, .threads = 1, .shared_bytes = 64}, nullptr, Params{nullptr, &box});
}

void overrun_kernel(const Params) { shared_memory()[16] = 1; }

void overrun() { launch(overrun_kernel, {.blocks = 1, .threads = 1, .shared_bytes = 16}, nullptr, Params{}); }

void too_large() {
    launch(overrun_kernel, {.blocks = 1000, .threads = 1, .all_resident = true, .shared_bytes = 64}, nullptr, Params{});
}

}  // namespace

const std::map<std::string, void (*)()>& all() {
    static const std::map<std::string, void (*)()> tests = {
        {"barrier", barrier},   {"vote", vote},           {"shuffle", shuffle},   {"poison", poison},
        {"ldmatrix", matrices}, {"copies", copies},       {"early", early},       {"flags", flags},
        {"trap", trapped},      {"unaligned", unaligned}, {"mma", mma},           {"mailbox", mailbox},
        {"cluster", cluster},   {"patience", patience},   {"deadlock", deadlock}, {"spinning", spinning},
        {"overrun", overrun},   {"too_large", too_large},
    };
    return tests;
}

}  // namespace selftest
