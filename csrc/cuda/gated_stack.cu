// gated_stack on the GPU: which kernel runs, on tiles of how many columns, and the launches.
#include <algorithm>
#include <stdexcept>

#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/tile_state.cuh"
#include "cuda/tiles.cuh"

namespace fastwave::cuda {

namespace {

struct Kernel {
    const char* name;
    Dtype dtype;
    int sm;  // from this on
    int columns, threads;
    int64_t staging_bytes;  // and little more, that must be shared memory
    void (*prepare)(TileParams);
    void (*run)(TileParams);
    void (*keep)(TileParams);
    int (*words)(int channels);
    int64_t (*block_bytes)(const TileParams& p);  // of workspace, for what finds no room in shared memory
};

template <class T, class Tile>
constexpr Kernel kernel(const char* name) {
    return {name,
            T::dtype,
            tiles_sm<T, Tile>,
            Tile::columns,
            Tile::threads,
            4 * Tile::staging_words + 1024,
            &prepare_tiles<T>,
            &run_tiles<T, Tile>,
            &keep_state<T>,
            [](int channels) { return T::words(padded_rows(channels)); },
            &TileStack<T, Tile>::block_bytes};
}

// All there are. Of those that fit, the first is taken that gives every multiprocessor a tile, or else the last.
constexpr Kernel kernels[] = {
    kernel<Bfloat16Mma, Tile<2, 4, 4>>("mma, 128 columns"), kernel<Bfloat16Mma, Tile<2, 4, 2>>("mma, 64 columns"),
    kernel<Bfloat16Mma, Tile<2, 4, 1>>("mma, 32 columns"),  kernel<Bfloat16, Tile<2, 4, 1>>("32 columns"),
    kernel<Float32, Tile<2, 4, 4>>("128 columns"),          kernel<Float32, Tile<2, 4, 1>>("32 columns"),
};

struct Plan {
    const Kernel* kernel;
    TileParams params = {};
    int blocks = 0;
    int64_t bytes = 0;

    // A piece of the workspace; null without one.
    template <class Word>
    Word* take(int64_t count) {
        unsigned char* piece = base ? base + bytes : nullptr;
        bytes += (count * static_cast<int64_t>(sizeof(Word)) + 15) / 16 * 16;
        return reinterpret_cast<Word*>(piece);
    }
    unsigned char* base = nullptr;
};

TileParams fill(const StackBatch& call) {
    const GatedStackParams& from = call.tensors;
    const StackShape& s = from.shape;
    TileParams p = {};
    p.set_sizes(s);
    p.causal = s.causal, p.separable = s.separable, p.mu_first = s.mu_first;
    p.cond_taps = static_cast<int>(s.cond_taps);
    p.lag_front = static_cast<int>(s.lag_front());
    p.look_ahead = static_cast<int>(s.look_ahead());
    p.epilogue = s.epilogue, p.delay = s.delay;
    p.x = from.x, p.c = from.c, p.interpolation = from.interpolation;
    p.g = from.g, p.u = from.u, p.y = from.y;
    p.state = from.state, p.out = from.out, p.lengths = call.lengths;
    p.state_size = s.state_size();
    p.rows = static_cast<int>(call.rows);
    p.time = static_cast<int>(from.time);
    p.cond_time = static_cast<int>(from.cond_time);
    p.out_time = static_cast<int>(from.out_time);
    p.pending = static_cast<int>(from.pending);
    p.last = from.last, p.reverse = from.reverse;
    return p;
}

const Kernel& choose(const StackBatch& call, const Device& device) {
    const GatedStackParams& from = call.tensors;
    const int64_t columns = from.time + (from.last ? from.shape.look_ahead() : 0);
    const Kernel* chosen = nullptr;
    for (const Kernel& kernel : kernels) {
        if (kernel.dtype != from.shape.dtype || kernel.sm > device.sm || kernel.staging_bytes > device.shared_bytes)
            continue;
        if (chosen && chosen->prepare != kernel.prepare) break;  // another type
        chosen = &kernel;
        if ((columns + kernel.columns - 1) / kernel.columns * call.rows >= device.sm_count) break;
    }
    if (!chosen) throw std::logic_error("gated_stack: no kernel");  // one takes everything
    return *chosen;
}

// Where everything lies in the workspace.
Plan make_plan(const StackBatch& call, int device_index) {
    const Device device(device_index);
    const StackShape& s = call.tensors.shape;
    Plan plan{.kernel = &choose(call, device),
              .params = fill(call),
              .base = reinterpret_cast<unsigned char*>(call.tensors.workspace)};
    TileParams& p = plan.params;
    const int columns = plan.kernel->columns, all = p.time + (p.last ? p.look_ahead : 0);
    p.shared_bytes = device.shared_bytes;
    p.tiles = (all + columns - 1) / columns;
    plan.blocks = static_cast<int>(std::clamp(int64_t{p.rows} * p.tiles, int64_t{1}, int64_t{device.sm_count}));
    p.under_way = plan.blocks / p.rows + 2;
    p.block_bytes = plan.kernel->block_bytes(p);
    p.cond_stride = plan.kernel->words(p.cond_channels);
    p.v_stride = s.separable ? padded_rows(p.residual) : plan.kernel->words(p.residual);
    p.columns = columns;
    p.came_size = p.history() * p.in_channels + p.late();

    p.drawn = plan.take<int>(1 + int64_t{p.rows} * p.tiles);
    p.stages = p.drawn + 1;
    p.came = plan.take<float>(int64_t{p.rows} * p.came_size);
    p.cond = plan.take<uint32_t>(int64_t{p.rows} * p.cond_time * p.cond_stride);
    p.blocks = plan.take<unsigned char>(plan.blocks * p.block_bytes);
    p.skip_sums = plan.take<float>(p.causal ? 0 : p.rows * int64_t{p.skip_ring().capacity} * p.skip_ring().stride);
    int64_t ring_words = 0;
    for (int l = 0; l < p.layers; ++l) ring_words += p.ring_words(l);
    p.rings = plan.take<uint32_t>(ring_words);
    return plan;
}

}  // namespace

StackPlan gated_stack_plan(const StackBatch& call, int device) {
    DeviceGuard guard(device);
    const Plan plan = make_plan(call, device);
    return {plan.kernel->name, plan.kernel->columns, plan.blocks, plan.bytes};
}

void gated_stack(const StackBatch& call, int device, cudaStream_t stream) {
    DeviceGuard guard(device);
    Plan plan = make_plan(call, device);
    TileParams& p = plan.params;
    p.set_weights(call.tensors.weights, call.tensors.shape);
    constexpr unsigned threads = 256;
    const Grid around = {.blocks = static_cast<unsigned>(4 * plan.blocks), .threads = threads};
    launch(plan.kernel->prepare, around, stream, p);
    launch(plan.kernel->run,
           {.blocks = static_cast<unsigned>(plan.blocks),
            .threads = static_cast<unsigned>(plan.kernel->threads),
            .shared_bytes = static_cast<std::size_t>(p.shared_bytes)},
           stream, p);
    if (p.state) launch(plan.kernel->keep, around, stream, p);
}

}  // namespace fastwave::cuda
