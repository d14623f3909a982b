// gated_stack by blocks that take tiles: a tile is some columns of a row, and goes through front, all layers and head
// without leaving its block. What neighbours must know of it, v, goes through the L2 cache.
//
// Blocks draw tiles in order, all rows of a time before the next, so whoever is waited for has begun, and no block need
// run beside another. Each tile has a flag, the number of stages that it has behind it. Rings are as long as a layer's
// reach and the tiles of a row that may be under way: nobody need ask whether a column may be overwritten.
//
// The order of accumulation: bias, g, conditioning, taps, the newest first.
#pragma once

#include "cuda/tile_params.cuh"
#include "cuda/tile_product.cuh"
#include "cuda/wait.cuh"

namespace fastwave::cuda {

// A block's own buffers.
template <class T, class Tile>
struct TileBuffers {
    uint32_t *staging, *z, *filtered;
    float *h, *skip, *frames, *heads[2];
    int z_stride, filtered_stride, h_stride, skip_stride, frames_stride, head_stride;

    __host__ __device__ TileBuffers(Arena& arena, const TileParams& p) {
        constexpr int columns = Tile::columns;
        const int R = padded_rows(p.residual), G = padded_rows(p.gate), S = padded_rows(p.skip);
        z_stride = column_stride(T::words(G));
        filtered_stride = T::words(R);
        h_stride = column_stride(R);
        skip_stride = column_stride(S);
        frames_stride = 2 * G;
        int widest = larger(R, padded_rows(p.body()));
        for (int i = 0; i < p.heads; ++i) widest = larger(widest, p.head_rows(i));
        head_stride = column_stride(widest);

        staging = arena.take<uint32_t>(Tile::staging_words);
        z = arena.take<uint32_t>(int64_t{columns} * z_stride);
        h = arena.take<float>(int64_t{columns} * h_stride);
        skip = arena.take<float>(p.causal ? int64_t{columns} * skip_stride : 0);
        frames = arena.take<float>(p.by_frames() ? frame_columns(p) * frames_stride : 0);
        heads[0] = arena.take<float>(int64_t{columns} * head_stride);
        heads[1] = arena.take<float>(int64_t{columns} * head_stride);
        filtered = arena.take_global<uint32_t>(p.separable ? int64_t{columns} * filtered_stride : 0);
    }

    // Columns of c that a tile's columns may stand at or between.
    __host__ __device__ static int64_t frame_columns(const TileParams& p) {
        return (Tile::columns - 1) / p.cond_repeat + 1 + p.cond_taps;
    }
};

// ---- what products read (tile_product.cuh)
// ---------------------------------------------------------------------------

// One slab of columns of global memory: column(i) is the i-th, of `words` words, or null for zeros.
template <class Tile, class Column>
__device__ __forceinline__ void load_columns(uint32_t* to, const Column& column, int word, int words) {
    for (int i = threadIdx.x; i < Tile::columns * slab / 4; i += Tile::threads) {
        const int part = word + i % (slab / 4) * 4;
        const uint32_t* from = column(i / (slab / 4));
        copy_async(to + i / (slab / 4) * slab_stride + i % (slab / 4) * 4, from + part, from && part < words);
    }
}

// Columns that stand one behind the other, in global memory or, `shared`, where they are read.
template <class Tile>
struct Columns {
    const uint32_t* weights;
    int depth;  // words
    const uint32_t* data;
    int stride, count;
    bool shared;

    __device__ int segments() const { return 1; }
    __device__ int words(int) const { return depth; }
    __device__ const uint32_t* matrix(int) const { return weights; }
    __device__ void load(int, int word, uint32_t* to) const {
        if (!shared)
            load_columns<Tile>(
                to, [&](int column) { return column < count ? data + int64_t{column} * stride : nullptr; }, word,
                stride);
    }
    __device__ const uint32_t* staged(int, int word, const uint32_t* loaded, int& loaded_stride) const {
        if (!shared) return loaded;
        loaded_stride = stride;
        return data + word;
    }
};

// ---- the kernel
// ------------------------------------------------------------------------------------------------------

template <class T, class Tile>
class TileStack {
    static constexpr int columns = Tile::columns;

    // What all threads know, in shared memory: there it takes no registers.
    struct Shared {
        int drawn;
        LayerAt layers[2];  // the one that is made, and the one behind it, in turn
        TileBuffers<T, Tile> buffers;
    };

public:
    // Bytes of its own that a block needs beside its shared memory.
    static int64_t block_bytes(const TileParams& p) {
        Arena arena{nullptr, p.shared_bytes, nullptr, 0};
        arena.take<Shared>(1);
        TileBuffers<T, Tile>(arena, p);
        return arena.global_used;
    }

    __device__ explicit TileStack(const TileParams& params)
        : p(params),
          arena{shared_memory(), p.shared_bytes, p.blocks + blockIdx.x * p.block_bytes, 0},
          shared(*arena.take<Shared>(1)),
          b(shared.buffers),
          R(padded_rows(p.residual)),
          G(padded_rows(p.gate)),
          S(padded_rows(p.skip)) {}

    __device__ void run() {
        const TileBuffers<T, Tile> buffers(arena, p);
        if (threadIdx.x == 0) shared.buffers = buffers;
        for (;;) {
            __syncthreads();  // everybody has read the last number
            if (threadIdx.x == 0) shared.drawn = atomicAdd(p.drawn, 1);
            __syncthreads();
            tile = shared.drawn / p.rows;
            row = shared.drawn % p.rows;
            if (tile >= p.tiles) return;
            run_tile();
        }
    }

private:
    __device__ void run_tile() {
        length = p.length(row);
        first = tile * columns;
        if (first < (p.last ? length + p.look_ahead : p.time)) {
            await_room();
            if (threadIdx.x == 0) shared.layers[0] = p.layer();
            __syncthreads();
            front(shared.layers[0]);
            publish(1);
            for (int l = 0; l < p.layers; ++l) {
                const LayerAt &layer = shared.layers[l % 2], &next = shared.layers[(l + 1) % 2];
                if (threadIdx.x == 0) shared.layers[(l + 1) % 2] = p.behind(layer);
                if (p.separable) filter(layer);
                if (p.by_frames()) frames(layer);
                gates(layer);
                products(layer, next);
                publish(l + 2);
            }
            head();
        }
        publish(p.layers + 2);
    }

    // Of the tile's columns those that a stage of some lag makes.
    struct Span {
        int from, to;
        __device__ bool has(int column) const { return column >= from && column < to; }
    };
    __device__ Span made(int lag) const {
        return {max(0, p.made_from(lag) + lag - first), min(columns, p.made_to(length, lag) + lag - first)};
    }

    // ---- other tiles of the row -------------------------------------------------------------------------------------

    __device__ int* stages_of(int of_tile) const { return p.stages + int64_t{row} * p.tiles + of_tile; }

    __device__ void publish(int stages) const {
        __syncthreads();
        if (threadIdx.x == 0) store_release(stages_of(tile), stages);
    }

    // Waits until the earlier ones of tiles tile_of(i), i < count, have so many stages behind them. A barrier.
    template <class TileOf>
    __device__ void await(int count, int stages, const TileOf& tile_of) const {
        bool reached = true;
        for (int i = threadIdx.x; i < count; i += Tile::threads) {
            const int awaited = tile_of(i);
            if (awaited < 0 || awaited >= tile) continue;
            const int* flag = stages_of(awaited);
            reached &= wait_for([&] { return load_acquire(flag) >= stages; });
        }
        if (!__syncthreads_and(reached)) trap();
    }

    // All tiles but the last `under_way` are done: their places in the rings are free. A tile that is done has seen to
    // it for those before.
    __device__ void await_room() const {
        await(p.under_way, p.layers + 2, [&](int i) { return tile - p.under_way - i; });
    }

    // What the layer's older taps read.
    __device__ void await_taps(const LayerAt& layer) const {
        await(2 * (p.kernel_size - 1), layer.index + 1, [&](int i) {
            const int index = first - (i / 2 + 1) * layer.dilation + i % 2 * (columns - 1);
            return index < 0 ? -1 : index / columns;
        });
    }

    // ---- v and h ----------------------------------------------------------------------------------------------------

    // Where a stage puts the tile's columns: h where the next layer's residual finds it, v where the taps do.
    struct Sink {
        Ring<float> h;
        Ring<uint32_t> v;  // none behind the last layer
        int h_place, v_place;
        const float* u;
    };

    __device__ Ring<float> own(float* data, int stride) const { return {data, columns, stride}; }

    __device__ Sink sink(const LayerAt& layer) const {
        const bool inner = layer.index < p.layers;
        Sink to = {own(b.h, b.h_stride), {}, 0, 0, nullptr};
        if (inner && !p.causal) {
            to.h = layer.h.of_row(row);
            to.h_place = to.h.place(first);
        }
        if (inner) {
            to.v = layer.v.of_row(row);
            to.v_place = to.v.place(first);
            if (p.u) to.u = p.u + (int64_t{row} * p.layers + layer.index) * p.residual;
        }
        return to;
    }

    // u of two channels.
    __device__ float2 u_of(const Sink& to, int channel) const {
        if (!to.u) return {0.f, 0.f};
        return {channel < p.residual ? to.u[channel] : 0.f, channel + 1 < p.residual ? to.u[channel + 1] : 0.f};
    }

    // Where a column goes, channels `channel` and the next one at once.
    struct Put {
        float* h;
        uint32_t* v;
        bool separable;
        __device__ void operator()(int channel, float2 value, float2 u) const {
            *reinterpret_cast<float2*>(h + channel) = value;
            if (v && separable) Float32::store(v, channel, value.x + u.x, value.y + u.y);
            if (v && !separable) T::store(v, channel, value.x + u.x, value.y + u.y);
        }
    };
    __device__ Put put_at(const Sink& to, int column) const {
        return {to.h.at(to.h_place, column), to.v.data ? to.v.at(to.v_place, column) : nullptr, p.separable};
    }

    // Of columns of v, counted from the tile's first, those that are not zeros: this call makes them, or they come
    // before column 0 and the state held them.
    struct Known {
        Span made;
        int held;
        __device__ bool has(int column) const { return column < held || made.has(column); }
    };
    __device__ Known known(const LayerAt& layer) const {
        const int from = p.made_from(layer.before), to = p.made_to(length, layer.before), origin = first - layer.before;
        return {{from - origin, to - origin}, p.state ? -first : INT_MIN};
    }

    // One slab of what the tap reads that lies `distance` behind the newest.
    __device__ void load_tap(const LayerAt& layer, int distance, int word, uint32_t* to) const {
        const Known there = known(layer);
        const Ring<uint32_t> v = layer.v.of_row(row);
        const int place = v.place(first - distance);
        load_columns<Tile>(
            to, [&](int column) { return there.has(column - distance) ? v.at(place, column) : nullptr; }, word,
            p.v_stride);
    }

    // ---- products ---------------------------------------------------------------------------------------------------

    // sum <- bias, or 0 without one
    __device__ static void start(Sum<Tile>& sum, const float* bias, int first_panel, int panels) {
#pragma unroll
        for (int i = 0; i < warp_panels; ++i) {
            const bool given = bias && first_panel + i < panels;
            const float* at = bias + (first_panel + i) * panel + 2 * lane_group();
            const float upper = given ? at[0] : 0.f, lower = given ? at[1] : 0.f;
#pragma unroll
            for (int n = 0; n < Tile::groups; ++n) {
                sum.value[i][n][0] = sum.value[i][n][1] = upper;
                sum.value[i][n][2] = sum.value[i][n][3] = lower;
            }
        }
    }

    // to <- bias + W x behind a ReLU or not, for `count` columns.
    template <class Type, class Source>
    __device__ void product(const float* bias, int panels, Source source, float* to, int stride, int count, bool relu) {
#pragma unroll 1
        for (int pass = 0; pass < panels; pass += Tile::panels) {
            const int mine = pass + Tile::first_panel();
            Sum<Tile> sum;
            start(sum, bias, mine, panels);
            multiply<Type>(sum, b.staging, pass, panels, source);
            sum.for_each(mine, panels, [&](int column) {
                float* at = to + column * stride + mine * panel + 2 * lane_group();
                return [=](int i, float upper, float lower) {
                    if (column >= count) return;
                    *reinterpret_cast<float2*>(at + i * panel) = {relu && upper < 0.f ? 0.f : upper,
                                                                  relu && lower < 0.f ? 0.f : lower};
                };
            });
        }
    }

    // ---- the stages -------------------------------------------------------------------------------------------------

    struct Front {
        const TileStack& s;
        __device__ int segments() const { return 1; }
        __device__ int words(int) const { return s.p.in_channels * s.p.front_width; }
        __device__ const uint32_t* matrix(int) const { return s.p.front + s.R; }
        __device__ void load(int, int word, uint32_t* to) const {
#pragma unroll 1
            for (int i = threadIdx.x; i < columns * slab; i += Tile::threads)
                to[i / slab * slab_stride + i % slab] = __float_as_uint(s.input(i / slab, word + i % slab));
        }
        __device__ const uint32_t* staged(int, int, const uint32_t* loaded, int&) const { return loaded; }
    };

    // What the front's depth `word`, a tap and a channel, reads for a column.
    __device__ float input(int column, int word) const {
        const int tap = word / p.in_channels, channel = word % p.in_channels;
        if (tap >= p.front_width) return 0.f;
        const int t = first + column - (p.front_width - 1) + tap - (p.delay == Delay::input);
        if (t >= length) return 0.f;
        if (t >= 0) return p.x[(int64_t{row} * p.in_channels + channel) * p.time + p.place(t, length)];
        if (!p.state || t < -p.history()) return 0.f;
        return p.came[int64_t{row} * p.came_size + (t + p.history()) * p.in_channels + channel];
    }

    __device__ void front(const LayerAt& layer) {
        product<Float32>(reinterpret_cast<const float*>(p.front), R / panel, Front{*this}, b.heads[0], b.head_stride,
                         columns, p.front_relu);
        __syncthreads();
        const Sink to = sink(layer);
        const Span made = this->made(layer.before);
#pragma unroll 1
        for (int i = threadIdx.x; i < columns * R / 2; i += Tile::threads) {
            const int column = i / (R / 2), channel = i % (R / 2) * 2;
            if (!made.has(column)) continue;
            put_at(to, column)(channel, *reinterpret_cast<float2*>(b.heads[0] + column * b.head_stride + channel),
                               u_of(to, channel));
        }
    }

    // The depthwise convolution of a separable layer, oldest tap first.
    __device__ void filter(const LayerAt& layer) {
        await_taps(layer);
        const float* weights = reinterpret_cast<const float*>(layer.weights + p.depthwise_at);
        const Known there = known(layer);
        const Ring<uint32_t> v = layer.v.of_row(row);
#pragma unroll 1
        for (int i = threadIdx.x; i < columns * R / 2; i += Tile::threads) {
            const int column = i / (R / 2), channel = i % (R / 2) * 2;
            float2 sum = {weights[channel], weights[channel + 1]};
            for (int tap = 0; tap < p.kernel_size; ++tap) {
                const int from = column - layer.reach + tap * layer.dilation;
                if (!there.has(from)) continue;
                const float* weight = weights + (1 + tap) * R + channel;
                const uint32_t* value = v.at(v.place(first + from)) + channel;
                sum.x = fmaf(weight[0], __uint_as_float(value[0]), sum.x);
                sum.y = fmaf(weight[1], __uint_as_float(value[1]), sum.y);
            }
            T::store(b.filtered + column * b.filtered_stride, channel, sum.x, sum.y);
        }
    }

    // The columns of c that the tile's columns stand at or between: the first one's place, and how many.
    struct Frames {
        int first, count;
    };
    __device__ Frames frames_of(const LayerAt& layer) const {
        const Span made = this->made(layer.after);
        if (made.from >= made.to) return {0, 0};
        const int one = p.cond_place(first + made.from - layer.after, length);
        const int other = p.cond_place(first + made.to - 1 - layer.after, length);
        return {min(one, other) - p.cond_taps / 2, max(one, other) - min(one, other) + p.cond_taps};
    }

    // A_l c of those columns.
    __device__ void frames(const LayerAt& layer) {
        const Frames all = frames_of(layer);
#pragma unroll 1
        for (int at = 0; at < all.count; at += columns) {
            const int count = min(columns, all.count - at);
            const uint32_t* c = p.cond + (int64_t{row} * p.cond_time + all.first + at) * p.cond_stride;
            const Columns<Tile> source = {
                layer.weights + p.cond_at, T::words(p.cond_channels), c, p.cond_stride, count, false};
            product<T>(nullptr, 2 * G / panel, source, b.frames + at * b.frames_stride, b.frames_stride, count, false);
        }
        __syncthreads();
    }

    // Conditioning at the sample rate, and the taps, the newest first.
    struct Taps {
        const TileStack& s;
        const LayerAt& layer;
        int conditioned;  // segments before the taps
        bool waited;

        __device__ int segments() const { return conditioned + (s.p.separable ? 1 : s.p.kernel_size); }
        __device__ int words(int segment) const {
            return T::words(segment < conditioned ? s.p.cond_channels : s.p.residual);
        }
        __device__ const uint32_t* matrix(int segment) const {
            if (segment < conditioned) return layer.weights + s.p.cond_at;
            const int64_t tap = segments() - 1 - segment;
            return layer.weights + s.p.taps_at + tap * 2 * s.G * T::words(s.p.residual);
        }
        __device__ void load(int segment, int word, uint32_t* to) {
            if (segment < conditioned) {
                const Span made = s.made(layer.after);
                const int t = s.first - layer.after, place = s.p.reverse ? s.length - 1 - t : t + s.p.pending;
                const int step = s.p.reverse ? -1 : 1;
                const uint32_t* c = s.p.cond + int64_t{s.row} * s.p.cond_time * s.p.cond_stride;
                load_columns<Tile>(
                    to,
                    [&](int column) {
                        return made.has(column) ? c + int64_t{place + step * column} * s.p.cond_stride : nullptr;
                    },
                    word, s.p.cond_stride);
            } else if (s.p.separable) {
                load_columns<Tile>(
                    to, [&](int column) { return s.b.filtered + column * s.b.filtered_stride; }, word,
                    s.b.filtered_stride);
            } else {
                if (segment > conditioned && !waited) {
                    s.await_taps(layer);
                    waited = true;
                }
                s.load_tap(layer, (segment - conditioned) * layer.dilation, word, to);
            }
        }
        __device__ const uint32_t* staged(int, int, const uint32_t* loaded, int&) const { return loaded; }
    };

    // sum += what conditioning at a lower rate adds.
    __device__ void add_frames(Sum<Tile>& sum, const LayerAt& layer, int first_panel, int panels) const {
        const Span made = this->made(layer.after);
        const int64_t stride = b.frames_stride;
        const float* data = b.frames - frames_of(layer).first * stride;
#pragma unroll
        for (int n = 0; n < Tile::groups; ++n)
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                const int column = Tile::first_column() + 8 * n + 2 * lane_quad() + k;
                if (!made.has(column)) continue;
                const int t = first + column - layer.after;
                const float* frame = data + (p.cond_place(t, length) - p.cond_taps / 2) * stride + first_panel * panel +
                                     2 * lane_group();
                const float* weights = nullptr;
                if (p.interpolation)
                    weights = p.interpolation + (int64_t{row} * (p.pending + p.time) + t + p.pending) * p.cond_taps;
#pragma unroll 1
                for (int tap = 0; tap < p.cond_taps; ++tap, frame += stride) {
                    const float weight = weights ? weights[tap] : 1.f;
#pragma unroll
                    for (int i = 0; i < warp_panels; ++i) {
                        if (first_panel + i >= panels) continue;
                        const float2 value = *reinterpret_cast<const float2*>(frame + i * panel);
                        sum.value[i][n][k] = fmaf(value.x, weight, sum.value[i][n][k]);
                        sum.value[i][n][2 + k] = fmaf(value.y, weight, sum.value[i][n][2 + k]);
                    }
                }
            }
    }

    __device__ void add_g(Sum<Tile>& sum, const LayerAt& layer, int first_panel) const {
        const float* g = p.g + (int64_t{row} * p.layers + layer.index) * 2 * p.gate;
#pragma unroll
        for (int i = 0; i < warp_panels; ++i) {
            const int channel = (first_panel + i) / 2 * panel + 2 * lane_group(), half = i % 2 * p.gate;
            const float upper = channel < p.gate ? g[half + channel] : 0.f;
            const float lower = channel + 1 < p.gate ? g[half + channel + 1] : 0.f;
#pragma unroll
            for (int n = 0; n < Tile::groups; ++n)
#pragma unroll
                for (int k = 0; k < 2; ++k) {
                    sum.value[i][n][k] += upper;
                    sum.value[i][n][2 + k] += lower;
                }
        }
    }

    __device__ void gates(const LayerAt& layer) {
        Taps source = {*this, layer, p.cond_channels && !p.by_frames(), false};
        const int panels = 2 * G / panel;
#pragma unroll 1
        for (int pass = 0; pass < panels; pass += Tile::panels) {
            const int mine = pass + Tile::first_panel();
            Sum<Tile> sum;
            start(sum, reinterpret_cast<const float*>(layer.weights), mine, panels);
            if (p.g) add_g(sum, layer, mine);
            if (p.by_frames()) add_frames(sum, layer, mine, panels);
            multiply<T>(sum, b.staging, pass, panels, source);
            uint32_t* z = b.z + (Tile::first_column() + 2 * lane_quad()) * b.z_stride;
#pragma unroll
            for (int i = 0; i < warp_panels; i += 2) {
                if (mine + i >= panels) continue;
#pragma unroll
                for (int n = 0; n < Tile::groups; ++n)
#pragma unroll
                    for (int k = 0; k < 2; ++k) {
                        const float *filter = sum.value[i][n], *gate = sum.value[i + 1][n];
                        T::store(z + (8 * n + k) * b.z_stride, (mine + i) / 2 * panel + 2 * lane_group(),
                                 gated(filter[k], gate[k]), gated(filter[2 + k], gate[2 + k]));
                    }
            }
        }
    }

    // h <- (h + R z + r) residual_scale, skip += S z + s
    __device__ void products(const LayerAt& layer, const LayerAt& next) {
        const bool first = layer.index == 0, last = layer.index + 1 == p.layers;
        const int residual_rows = last && p.skip ? 0 : R, residual_panels = residual_rows / panel;
        const int rows = residual_rows + S;
        const uint32_t* weights = layer.weights + p.product_at;
        const Columns<Tile> source = {weights + rows, T::words(p.gate), b.z, b.z_stride, columns, in_shared(b.z)};
#pragma unroll 1
        for (int pass = 0; pass < rows / panel; pass += Tile::panels) {
            const int mine = pass + Tile::first_panel();
            Sum<Tile> sum;
            start(sum, reinterpret_cast<const float*>(weights), mine, rows / panel);
            multiply<T>(sum, b.staging, pass, rows / panel, source);
            const Sink to = sink(next);
            const Span made = this->made(layer.after);
            const Ring<float> h = p.causal ? own(b.h, b.h_stride) : layer.h.of_row(row), skip = skip_sums();
            const int h_place = p.causal ? 0 : h.place(this->first + layer.before - layer.after);
            const int skip_place = p.causal ? 0 : skip.place(this->first + p.look_ahead - layer.after);
            const float scale = p.residual_scale;
            float2 u[warp_panels];
#pragma unroll
            for (int i = 0; i < warp_panels; ++i) u[i] = u_of(to, (mine + i) * panel + 2 * lane_group());
            // What the sums are added to comes first, for two columns at once: it may come from far.
#pragma unroll
            for (int n = 0; n < Tile::groups; ++n) {
                float before[warp_panels][4];
                auto two = [&](const auto& each) {
#pragma unroll
                    for (int k = 0; k < 2; ++k) {
                        const int column = Tile::first_column() + 8 * n + 2 * lane_quad() + k;
                        if (!made.has(column)) continue;
#pragma unroll
                        for (int i = 0; i < warp_panels; ++i)
                            if (mine + i < rows / panel) each(column, i, before[i] + k, sum.value[i][n] + k);
                    }
                };
                two([&](int column, int i, float* x, const float*) {
                    const int channel = (mine + i) * panel + 2 * lane_group();
                    const bool residual = mine + i < residual_panels;
                    const float* at = residual ? h.at(h_place, column) : skip.at(skip_place, column) - residual_rows;
                    const float2 value =
                        first && !residual ? float2{0.f, 0.f} : *reinterpret_cast<const float2*>(at + channel);
                    x[0] = value.x;
                    x[2] = value.y;
                });
                two([&](int column, int i, const float* x, const float* y) {
                    const int channel = (mine + i) * panel + 2 * lane_group();
                    if (mine + i < residual_panels)
                        put_at(to, column)(channel, {(x[0] + y[0]) * scale, (x[2] + y[2]) * scale}, u[i]);
                    else
                        *reinterpret_cast<float2*>(skip.at(skip_place, column) - residual_rows + channel) = {
                            x[0] + y[0], x[2] + y[2]};
                });
            }
        }
    }

    // Those of a centred stack stand at t + look_ahead.
    __device__ Ring<float> skip_sums() const {
        return p.causal ? own(b.skip, b.skip_stride) : p.skip_ring().of_row(row);
    }

    __device__ void head() {
        float *in = b.heads[0], *out = b.heads[1];
        const int body = padded_rows(p.body());
        const Ring<float> from = p.skip ? skip_sums() : own(b.h, b.h_stride);
        const int place = p.causal || !p.skip ? 0 : from.place(first);
#pragma unroll 1
        for (int i = threadIdx.x; i < columns * body; i += Tile::threads) {
            const int column = i / body, channel = i % body;
            const float value = from.at(place, column)[channel];
            in[column * b.head_stride + channel] = p.heads && p.head_relu[0] && value < 0.f ? 0.f : value;
        }
        const uint32_t* weights = p.head;
        int depth = p.body();
#pragma unroll 1
        for (int l = 0; l < p.heads; ++l) {
            const int rows = p.head_rows(l);
            const auto* x = reinterpret_cast<const uint32_t*>(in);
            const Columns<Tile> source = {weights + rows, depth, x, b.head_stride, columns, in_shared(in)};
            product<Float32>(reinterpret_cast<const float*>(weights), rows / panel, source, out, b.head_stride, columns,
                             l + 1 < p.heads && p.head_relu[l + 1]);
            weights += rows + int64_t{rows} * depth;
            depth = p.head_channels[l];
            float* swapped = in;
            in = out;
            out = swapped;
        }
        __syncthreads();
        write(in);
    }

    // The epilogue. Column t's parameters make sample t or, with a delayed output, t + 1; the first sample's come from
    // the call before, and the last column's stay for the next.
    __device__ void write(const float* parameters) const {
        const Span made = this->made(p.look_ahead);
        const int channels = p.out_channels();
        const int from = p.made_from(p.look_ahead), to = p.made_to(length, p.look_ahead);
#pragma unroll 1
        for (int i = threadIdx.x; i < columns * channels; i += Tile::threads) {
            const int column = i % columns, channel = i / columns, t = first + column - p.look_ahead;
            if (!made.has(column)) continue;
            const float* own = parameters + column * b.head_stride;
            if (p.delay != Delay::output) {
                write_sample(t, channel, own);
                continue;
            }
            if (t + 1 < to) write_sample(t + 1, channel, own);
            if (t == from) {
                if (p.state)
                    write_sample(t, channel, p.came + (int64_t{row} + 1) * p.came_size - p.late());
                else
                    p.out[place_of(t, channel)] = 0.f;
            }
            if (t + 1 == to && p.state)
                for (int j = channel; j < p.late(); j += channels)
                    p.state[(int64_t{row} + 1) * p.state_size - p.late() + j] = own[j];
        }
    }

    __device__ int64_t place_of(int t, int channel) const {
        return (int64_t{row} * p.out_channels() + channel) * p.out_time + p.place(t, length) + p.pending;
    }

    __device__ void write_sample(int t, int channel, const float* parameters) const {
        const int64_t at = place_of(t, channel);
        if (p.epilogue == Epilogue::none) {
            p.out[at] = parameters[channel];
            return;
        }
        const int other = p.out_channels() + channel;
        const float mu = parameters[p.mu_first ? channel : other];
        const float log_sigma = parameters[p.mu_first ? other : channel];
        const float in = (p.y ? p.y : p.x)[at];
        p.out[at] = p.epilogue == Epilogue::affine ? in * expf(log_sigma) + mu : (in - mu) * expf(-log_sigma);
    }

    __device__ bool in_shared(const void* pointer) const {
        const auto* at = static_cast<const unsigned char*>(pointer);
        return at >= shared_memory() && at < shared_memory() + p.shared_bytes;
    }

    const TileParams& p;
    Arena arena;
    Shared& shared;
    const TileBuffers<T, Tile>& b;
    const int R, G, S;
    int row, tile, length, first;
};

// From which architecture on: sm_75 has 64 KB of shared memory.
template <class T, class Tile>
constexpr int tiles_sm = 4 * Tile::staging_words > 60 * 1024 ? larger(T::sm, 80) : T::sm;

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::threads, 1) run_tiles(const __grid_constant__ TileParams p) {
    if constexpr (tiles_sm<T, Tile> <= compiled_for) TileStack<T, Tile>(p).run();
}

}  // namespace fastwave::cuda
