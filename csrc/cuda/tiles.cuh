// gated_stack by blocks that take tiles: a tile is some columns of a row, and goes through front, all layers and head
// without leaving its block. What neighbours must know of it, v, goes through the L2 cache.
//
// Tiles are counted so that every stage is causal. A centred stage stands `lag` columns behind (params.h): tile j of a
// stage is columns [j n - lag, (j + 1) n - lag). So a stage of a tile needs the stage before of that tile and of
// earlier ones, never of later ones. Blocks draw tiles in order, all rows of a time before the next, so whoever is
// waited for has begun: no more blocks need to run at once than do.
//
// Each tile has a flag, the number of stages that it has behind it. Rings are as long as a layer's reach and the tiles
// of a row under way, see `begin`: so nobody need ask whether a column may be overwritten.
//
// The order of accumulation: bias, g, conditioning, taps, the newest first.
#pragma once

#include <climits>

#include "cuda/stack.cuh"
#include "cuda/tile_product.cuh"
#include "cuda/wait.cuh"

namespace fastwave::cuda {

struct TileParams : StackSizes {
    bool causal, separable, mu_first;
    int cond_taps, lag_front, look_ahead;
    Epilogue epilogue;
    Delay delay;

    const float *x, *c, *projected, *interpolation, *g, *u, *y;
    float *state, *out;
    const int64_t* lengths;
    int64_t state_size;
    int rows, time, cond_time, out_time, pending;
    bool last, reverse;

    // workspace
    int* drawn;              // tiles, by all blocks
    int* stages;             // (row, tile): that a tile has behind it
    const float* old_state;  // the state as it came, or null
    uint32_t* cond;          // (row, cond_time, cond_stride): c in words of the product
    uint32_t* rings;         // (layer): v (row, capacity, v_stride), and in a centred stack h (row, capacity, R)
    float* skip_sums;        // (row, skip_capacity, S) of a centred stack
    unsigned char* blocks;   // block_bytes for each block
    int64_t block_bytes;
    int cond_stride, v_stride, skip_capacity, tiles, under_way, shared_bytes;

    __host__ __device__ int head_rows(int i) const { return padded_rows(head_channels[i]); }
    __host__ __device__ int body() const { return skip ? skip : residual; }
    __host__ __device__ int parameters() const { return heads ? head_channels[heads - 1] : body(); }
    __host__ __device__ int out_channels() const { return parameters() / (epilogue == Epilogue::none ? 1 : 2); }
    __host__ __device__ int history() const { return front_width - 1 + (delay == Delay::input); }
    __host__ __device__ int reach(int layer) const { return (kernel_size - 1) * dilations[layer]; }
    __host__ __device__ int lag(int layer) const { return causal ? 0 : reach(layer) / 2; }
    __host__ __device__ int pending_skip() const { return skip ? look_ahead - lag_front - lag(0) : 0; }
    __device__ int64_t skip_state_at() const {
        return state_size - int64_t{pending_skip()} * skip - (delay == Delay::output ? parameters() : 0);
    }
    __host__ __device__ bool by_frames() const { return cond_channels && (cond_repeat > 1 || cond_taps > 1); }
    __host__ __device__ int capacity(int layer, int columns) const {
        return min(reach(layer) + under_way * columns, tiles * columns);
    }
    __host__ __device__ int64_t ring_words(int layer, int columns) const {
        return int64_t{rows} * capacity(layer, columns) * (v_stride + (causal ? 0 : padded_rows(residual)));
    }

    // ---- a row
    __device__ int length(int row) const {  // valid columns from the first of x; those before it are pending
        if (!lengths) return time;
        const int64_t valid = lengths[row];
        return static_cast<int>(min(max(valid, int64_t{0}), int64_t{pending} + time)) - pending;
    }
    // The columns that a stage of some lag makes in this call: [made_from, made_to).
    __device__ int made_from(int lag) const { return -min(lag, pending); }
    __device__ int made_to(int length, int lag) const { return last ? length : min(length, time - lag); }
    // Before this column there are zeros. A state that holds all it can has them in itself.
    __device__ int begin() const { return old_state && pending == look_ahead ? INT_MIN / 2 : -pending; }
    // Where the state ends: it holds the columns before.
    __device__ int now(int length) const { return look_ahead == 0 ? length : time; }
    __device__ int place(int t, int length) const { return reverse ? length - 1 - t : t; }
    // The column of c that column t stands at.
    __device__ int cond_place(int t, int length) const {
        auto key = [&](int at) { return at >= 0 ? at / cond_repeat : -((cond_repeat - 1 - at) / cond_repeat); };
        return reverse ? (length - 1 - t) / cond_repeat : key(t) - key(-pending) + cond_taps / 2;
    }
};

// Columns in time order, the ring's or the tile's own.
template <class Word>
struct Ring {
    Word* data;
    int capacity, stride;

    // A place in the ring, for columns from `index` on.
    __device__ int place(int index) const { return (index % capacity + capacity) % capacity; }
    __device__ Word* at(int place, int column) const {
        place += column;
        return data + int64_t{place < capacity ? place : place - capacity} * stride;
    }
};

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
        int widest = padded_rows(p.body());
        for (int i = 0; i < p.heads; ++i) widest = larger(widest, p.head_rows(i));
        head_stride = column_stride(widest);

        staging = arena.take<uint32_t>(Tile::staging_words);
        z = arena.take<uint32_t>(int64_t{columns} * z_stride);
        h = arena.take<float>(int64_t{columns} * h_stride);
        skip = arena.take<float>(p.causal ? int64_t{columns} * skip_stride : 0);
        frames = arena.take<float>(p.by_frames() ? frame_columns(p) * frames_stride : 0);
        heads[0] = arena.take<float>(int64_t{columns} * head_stride);
        heads[1] = arena.take<float>(int64_t{columns} * head_stride);
        filtered = arena.take<uint32_t>(p.separable ? int64_t{columns} * filtered_stride : 0);
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

// A layer of a row, as a tile meets it. Column t of its input stands in the rings at t + before.
struct LayerAt {
    int index, before, after;  // lags of what it reads, and of what it makes
    int dilation, reach;
    const uint32_t* weights;
    int64_t ring_at, state_at;
    Ring<uint32_t> v;
    Ring<float> h;  // of a centred stack
};

template <class T, class Tile>
class TileStack {
    static constexpr int columns = Tile::columns;
    static constexpr int per_word = 2 / T::words(2);  // channels

public:
    __device__ explicit TileStack(const TileParams& params)
        : p(params),
          arena{shared_memory(), p.shared_bytes, p.blocks + blockIdx.x * p.block_bytes, 0},
          drawn(arena.take<int>(1)),
          b(arena, p),
          R(padded_rows(p.residual)),
          G(padded_rows(p.gate)),
          S(padded_rows(p.skip)) {}

    __device__ void run() {
        for (;;) {
            __syncthreads();  // everybody has read the last number
            if (threadIdx.x == 0) *drawn = atomicAdd(p.drawn, 1);
            __syncthreads();
            tile = *drawn / p.rows;
            row = *drawn % p.rows;
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
            LayerAt layer = layer_at(0, p.lag_front, p.first_layer, 0, int64_t{p.history()} * p.in_channels);
            front(layer);
            publish(1);
            while (layer.index < p.layers) {
                const LayerAt next =
                    layer_at(layer.index + 1, layer.after, layer.weights + p.layer_words,
                             layer.ring_at + p.ring_words(layer.index, columns), layer.state_at + layer.reach * R0());
                if (p.separable) filter(layer);
                if (p.by_frames() && !p.projected) frames(layer);
                gates(layer);
                products(layer, next);
                layer = next;
                publish(layer.index + 1);
            }
            head();
        }
        publish(p.layers + 2);
    }

    __device__ int64_t R0() const { return p.residual; }

    // Behind the last layer stands one without reach, whose input is what the head reads.
    __device__ LayerAt layer_at(int index, int before, const uint32_t* weights, int64_t ring_at,
                                int64_t state_at) const {
        LayerAt layer = {index, before, before, 0, 0, weights, ring_at, state_at, {}, {}};
        if (index == p.layers) return layer;
        layer.after += p.lag(index);
        layer.dilation = p.dilations[index];
        layer.reach = p.reach(index);
        const int capacity = p.capacity(index, columns);
        const int64_t size = int64_t{capacity} * p.v_stride;
        uint32_t* rings = p.rings + ring_at;
        layer.v = {rings + row * size, capacity, p.v_stride};
        layer.h = {reinterpret_cast<float*>(rings + p.rows * size) + int64_t{row} * capacity * R, capacity, R};
        return layer;
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

    __device__ float state_h(const LayerAt& layer, int t, int channel) const {
        const float* column =
            p.old_state + row * p.state_size + layer.state_at + int64_t{t + layer.before + layer.reach} * p.residual;
        return channel < p.residual ? column[channel] : 0.f;
    }
    __device__ float u_at(const LayerAt& layer, int channel) const {
        if (!p.u || channel >= p.residual) return 0.f;
        return p.u[(int64_t{row} * p.layers + layer.index) * p.residual + channel];
    }
    // The layer's v as an earlier call left it: v itself, or of columns that the layer has not made, h.
    __device__ float state_v(const LayerAt& layer, int t, int channel) const {
        const float value = state_h(layer, t, channel);
        return t >= -layer.after ? value + u_at(layer, channel) : value;
    }

    // Columns of v that are not zeros.
    __device__ bool is_column(const LayerAt& layer, int t) const {
        return t >= p.begin() && t < p.made_to(length, layer.before);
    }

    // Where the tile's columns of h lie, at the time of what the layer makes.
    __device__ float* h_at(const LayerAt& layer, int column) const {
        if (p.causal || layer.index == p.layers) return b.h + column * b.h_stride;
        return layer.h.at(layer.h.place(first + layer.before - layer.after), column);
    }

    // Channels `channel` and the next one of the input of a layer, for the tile.
    __device__ void put(const LayerAt& layer, int column, int channel, float first_h, float second_h) const {
        const int t = first + column - layer.before;
        if (t < p.made_from(layer.before) || t >= p.made_to(length, layer.before)) return;
        const bool inner = !p.causal && layer.index < p.layers;
        float* h = inner ? layer.h.at(layer.h.place(first), column) : b.h + column * b.h_stride;
        h[channel] = first_h;
        h[channel + 1] = second_h;
        if (layer.index == p.layers) return;
        float v[2] = {first_h + u_at(layer, channel), second_h + u_at(layer, channel + 1)};
        uint32_t* words = layer.v.at(layer.v.place(first), column);
        if (p.separable) {
            Float32::store(words, channel, v[0], v[1]);
        } else {
            T::store(words, channel, v[0], v[1]);
            if (per_word == 2) {
                v[0] = __uint_as_float(words[channel / 2] << 16);
                v[1] = __uint_as_float(words[channel / 2] & 0xffff0000u);
            }
        }
        const int end = p.now(length), saved = t - (end - layer.before - layer.reach);
        if (!p.state || saved < 0 || saved >= layer.reach) return;
        float* to = p.state + row * p.state_size + layer.state_at + int64_t{saved} * p.residual + channel;
        const bool made = t < end - layer.after;
        if (channel < p.residual) to[0] = made ? v[0] : first_h;
        if (channel + 1 < p.residual) to[1] = made ? v[1] : second_h;
    }

    // One slab of what the tap reads that lies `distance` behind the newest.
    __device__ void load_tap(const LayerAt& layer, int distance, int word, uint32_t* to) const {
        const int index = first - distance, place = layer.v.place(index);
        for (int i = threadIdx.x; i < columns * slab / 4; i += Tile::threads) {
            const int column = i / (slab / 4), part = word + i % (slab / 4) * 4, t = index + column - layer.before;
            const bool wanted = part < p.v_stride && is_column(layer, t);
            uint32_t* at = to + column * slab_stride + part - word;
            if (wanted && t < p.made_from(layer.before))
                for (int pair = 0; pair < 2 * per_word; ++pair) {
                    const int channel = per_word * part + 2 * pair;
                    T::store(at, 2 * pair, state_v(layer, t, channel), state_v(layer, t, channel + 1));
                }
            else
                copy_async(at, layer.v.at(place, column) + part, wanted);
        }
    }

    // ---- the stages -------------------------------------------------------------------------------------------------

    struct Front {
        const TileStack& s;
        __device__ int segments() const { return 1; }
        __device__ int words(int) const { return s.p.in_channels * s.p.front_width; }
        __device__ const uint32_t* matrix(int) const { return s.p.front + s.R; }
        __device__ void load(int, int word, uint32_t* to) const {
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
        if (!p.old_state || t < -p.history()) return 0.f;
        return p.old_state[row * p.state_size + int64_t{t + p.history()} * p.in_channels + channel];
    }

    // sum <- bias
    __device__ static void start(Sum<Tile>& sum, const float* bias, int first_panel, int panels) {
        for (int i = 0; i < warp_panels; ++i) {
            const int index = first_panel + i;
            const float* at = bias + index * panel + 2 * lane_group();
            const float values[2] = {index < panels ? at[0] : 0.f, index < panels ? at[1] : 0.f};
            for (int n = 0; n < Tile::groups; ++n)
                for (int j = 0; j < 4; ++j) sum.value[i][n][j] = values[j / 2];
        }
    }

    // bias + W x of all panels: each(panel, column, row 2g, row 2g + 1), columns counted in the tile.
    template <class Type, class Source, class Each>
    __device__ void product(const float* bias, int panels, Source source, const Each& each) {
        for (int pass = 0; pass < panels; pass += Tile::panels) {
            const int mine = pass + Tile::first_panel();
            Sum<Tile> sum;
            start(sum, bias, mine, panels);
            multiply<Type>(sum, b.staging, pass, panels, source);
            sum.for_each([&](int i, int column, float upper, float lower) {
                if (mine + i < panels) each(mine + i, Tile::first_column() + column, upper, lower);
            });
        }
    }

    __device__ void front(const LayerAt& layer) {
        product<Float32>(reinterpret_cast<const float*>(p.front), R / panel, Front{*this},
                         [&](int index, int column, float upper, float lower) {
                             if (p.front_relu && upper < 0.f) upper = 0.f;
                             if (p.front_relu && lower < 0.f) lower = 0.f;
                             put(layer, column, index * panel + 2 * lane_group(), upper, lower);
                         });
    }

    // The depthwise convolution of a separable layer, oldest tap first.
    __device__ void filter(const LayerAt& layer) {
        await_taps(layer);
        const float* weights = reinterpret_cast<const float*>(layer.weights + p.depthwise_at);
        auto value = [&](int t, int channel) {
            if (!is_column(layer, t)) return 0.f;
            if (t < p.made_from(layer.before)) return state_v(layer, t, channel);
            return __uint_as_float(layer.v.at(layer.v.place(t + layer.before), 0)[channel]);
        };
        for (int i = threadIdx.x; i < columns * R / 2; i += Tile::threads) {
            const int column = i / (R / 2), channel = i % (R / 2) * 2;
            const int oldest = first + column - layer.before - layer.reach;
            float sum[2];
            for (int j = 0; j < 2; ++j) {
                sum[j] = weights[channel + j];
                for (int tap = 0; tap < p.kernel_size; ++tap)
                    sum[j] = fmaf(weights[(1 + tap) * R + channel + j],
                                  value(oldest + tap * layer.dilation, channel + j), sum[j]);
            }
            T::store(b.filtered + column * b.filtered_stride, channel, sum[0], sum[1]);
        }
    }

    // The columns of c that the tile's columns stand at or between: the first one's place, and how many.
    struct Frames {
        int first, count;
    };
    __device__ Frames frames_of(const LayerAt& layer) const {
        const int from = max(first - layer.after, p.made_from(layer.after));
        const int to = min(first - layer.after + columns, p.made_to(length, layer.after));
        if (from >= to) return {0, 0};
        const int one = p.cond_place(from, length), other = p.cond_place(to - 1, length);
        return {min(one, other) - p.cond_taps / 2, max(one, other) - min(one, other) + p.cond_taps};
    }

    // A_l c of those columns.
    __device__ void frames(const LayerAt& layer) {
        const Frames all = frames_of(layer);
        for (int at = 0; at < all.count; at += columns) {
            const int count = min(columns, all.count - at);
            const Columns<Tile> source = {layer.weights + p.cond_at,
                                          T::words(p.cond_channels),
                                          p.cond + (int64_t{row} * p.cond_time + all.first + at) * p.cond_stride,
                                          p.cond_stride,
                                          count,
                                          false};
            for (int pass = 0; pass < 2 * G / panel; pass += Tile::panels) {
                Sum<Tile> sum = {};
                multiply<T>(sum, b.staging, pass, 2 * G / panel, source);
                sum.for_each([&](int i, int column, float upper, float lower) {
                    const int index = pass + Tile::first_panel() + i;
                    column += Tile::first_column();
                    if (index >= 2 * G / panel || column >= count) return;
                    float* to = b.frames + (at + column) * b.frames_stride + index * panel + 2 * lane_group();
                    to[0] = upper;
                    to[1] = lower;
                });
            }
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
            const TileParams& p = s.p;
            if (segment < conditioned) {
                load_columns<Tile>(
                    to,
                    [&](int column) -> const uint32_t* {
                        const int t = s.first + column - layer.after;
                        if (t < p.made_from(layer.after) || t >= p.made_to(s.length, layer.after)) return nullptr;
                        return p.cond + (int64_t{s.row} * p.cond_time + p.cond_place(t, s.length)) * p.cond_stride;
                    },
                    word, p.cond_stride);
            } else if (p.separable) {
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

    // What the pre-activations of a panel's rows 2g and 2g + 1 start from.
    __device__ void start_gates(Sum<Tile>& sum, const LayerAt& layer, int first_panel) const {
        const float* bias = reinterpret_cast<const float*>(layer.weights);
        const Frames all = p.by_frames() && !p.projected ? frames_of(layer) : Frames{0, 0};
        const float* data =
            p.projected ? p.projected + (int64_t{row} * p.cond_time * p.layers + layer.index) * 2 * G : b.frames;
        const int64_t stride = p.projected ? int64_t{p.layers} * 2 * G : b.frames_stride;
        for (int i = 0; i < warp_panels; ++i) {
            const int index = first_panel + i, at = index * panel + 2 * lane_group();
            if (index >= 2 * G / panel) continue;
            float base[2];
            for (int j = 0; j < 2; ++j) {
                const int channel = index / 2 * panel + 2 * lane_group() + j;
                base[j] = p.projected ? 0.f : bias[at + j];
                if (p.g && channel < p.gate)
                    base[j] += p.g[((int64_t{row} * p.layers + layer.index) * 2 + index % 2) * p.gate + channel];
            }
            for (int n = 0; n < Tile::groups; ++n)
                for (int k = 0; k < 2; ++k) {
                    float value[2] = {base[0], base[1]};
                    const int t = first + Tile::first_column() + 8 * n + 2 * lane_quad() + k - layer.after;
                    const bool made = t >= p.made_from(layer.after) && t < p.made_to(length, layer.after);
                    if (made && (p.projected || p.by_frames())) {
                        const float* frame =
                            data + (p.cond_place(t, length) - p.cond_taps / 2 - all.first) * stride + at;
                        const float* weight =
                            p.interpolation
                                ? p.interpolation + (int64_t{row} * (p.pending + p.time) + t + p.pending) * p.cond_taps
                                : nullptr;
                        for (int tap = 0; tap < p.cond_taps; ++tap, frame += stride)
                            for (int j = 0; j < 2; ++j)
                                value[j] = weight ? fmaf(frame[j], weight[tap], value[j]) : value[j] + frame[j];
                    }
                    sum.value[i][n][k] = value[0];
                    sum.value[i][n][2 + k] = value[1];
                }
        }
    }

    __device__ void gates(const LayerAt& layer) {
        const bool conditioned = p.cond_channels && !p.by_frames() && !p.projected;
        Taps source = {*this, layer, conditioned, false};
        const int panels = 2 * G / panel;
        for (int pass = 0; pass < panels; pass += Tile::panels) {
            const int mine = pass + Tile::first_panel();
            Sum<Tile> sum = {};
            start_gates(sum, layer, mine);
            multiply<T>(sum, b.staging, pass, panels, source);
            for (int i = 0; i < warp_panels; i += 2) {
                if (mine + i >= panels) continue;
                for (int n = 0; n < Tile::groups; ++n)
                    for (int k = 0; k < 2; ++k) {
                        const float *filter = sum.value[i][n], *gate = sum.value[i + 1][n];
                        const int column = Tile::first_column() + 8 * n + 2 * lane_quad() + k;
                        T::store(b.z + column * b.z_stride, (mine + i) / 2 * panel + 2 * lane_group(),
                                 gated(filter[k], gate[k]), gated(filter[2 + k], gate[2 + k]));
                    }
            }
        }
    }

    // Where the skip sum of the tile's columns lies, at the time of what a layer makes.
    __device__ float* skip_at(int after, int column) const {
        if (p.causal) return b.skip + column * b.skip_stride;
        const Ring<float> ring = {p.skip_sums + int64_t{row} * p.skip_capacity * S, p.skip_capacity, S};
        return ring.at(ring.place(first - after + p.look_ahead), column);
    }

    // h <- (h + R z + r) residual_scale, skip += S z + s
    __device__ void products(const LayerAt& layer, const LayerAt& next) {
        const bool last = layer.index + 1 == p.layers;
        const int residual_panels = last && p.skip ? 0 : R / panel, rows = residual_panels * panel + S;
        const uint32_t* weights = layer.weights + p.product_at;
        const Columns<Tile> source = {weights + rows, T::words(p.gate), b.z, b.z_stride, columns, in_shared(b.z)};
        product<T>(reinterpret_cast<const float*>(weights), rows / panel, source,
                   [&](int index, int column, float upper, float lower) {
                       const int t = first + column - layer.after;
                       if (t < p.made_from(layer.after) || t >= p.made_to(length, layer.after)) return;
                       const bool saved = t < p.made_from(layer.before);  // what it adds to is an earlier call's
                       if (index < residual_panels) {
                           const int channel = index * panel + 2 * lane_group();
                           const float* h = h_at(layer, column) + channel;
                           const float before[2] = {saved ? state_h(layer, t, channel) : h[0],
                                                    saved ? state_h(layer, t, channel + 1) : h[1]};
                           put(next, column, channel, (before[0] + upper) * p.residual_scale,
                               (before[1] + lower) * p.residual_scale);
                       } else {
                           const int channel = (index - residual_panels) * panel + 2 * lane_group();
                           float value[2] = {upper, lower};
                           float* sum = skip_at(layer.after, column) + channel;
                           for (int j = 0; j < 2; ++j) {
                               if (layer.index > 0)
                                   value[j] += !saved ? sum[j]
                                               : channel + j < p.skip
                                                   ? *state_skip(p.old_state, t + p.look_ahead, channel + j)
                                                   : 0.f;
                               sum[j] = value[j];
                               // kept where the next layer does not come so far in this call
                               const int kept = t - (p.now(length) - p.look_ahead);
                               if (p.state && kept >= 0 && kept < p.pending_skip() && t >= p.now(length) - next.after &&
                                   channel + j < p.skip)
                                   *state_skip(p.state, kept, channel + j) = value[j];
                           }
                       }
                   });
    }

    template <class Float>
    __device__ Float* state_skip(Float* state, int column, int channel) const {
        return state + row * p.state_size + p.skip_state_at() + int64_t{column} * p.skip + channel;
    }

    __device__ void head() {
        float *in = b.heads[0], *out = b.heads[1];
        const int body = padded_rows(p.body());
        for (int i = threadIdx.x; i < columns * body; i += Tile::threads) {
            const int column = i / body, channel = i % body;
            const float* from = p.skip ? skip_at(p.look_ahead, column) : b.h + column * b.h_stride;
            const bool relu = p.heads && p.head_relu[0] && from[channel] < 0.f;
            in[column * b.head_stride + channel] = relu ? 0.f : from[channel];
        }
        const uint32_t* weights = p.head;
        int depth = p.body();
        for (int l = 0; l < p.heads; ++l) {
            const int rows = p.head_rows(l);
            const bool relu = l + 1 < p.heads && p.head_relu[l + 1];
            const Columns<Tile> source = {weights + rows, depth,   reinterpret_cast<const uint32_t*>(in),
                                          b.head_stride,  columns, in_shared(in)};
            product<Float32>(reinterpret_cast<const float*>(weights), rows / panel, source,
                             [&](int index, int column, float upper, float lower) {
                                 float* to = out + column * b.head_stride + index * panel + 2 * lane_group();
                                 to[0] = relu && upper < 0.f ? 0.f : upper;
                                 to[1] = relu && lower < 0.f ? 0.f : lower;
                             });
            __syncthreads();
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
        const int from = p.made_from(p.look_ahead), to = p.made_to(length, p.look_ahead), channels = p.out_channels();
        const bool late = p.delay == Delay::output;
        for (int i = threadIdx.x; i < columns * channels; i += Tile::threads) {
            const int column = i % columns, channel = i / columns, t = first + column - p.look_ahead;
            if (t < from || t >= to) continue;
            const float* own = parameters + column * b.head_stride;
            auto parameter = [&](int j) { return own[j]; };
            if (!late) {
                write_sample(t, channel, parameter);
                continue;
            }
            if (t + 1 < to) write_sample(t + 1, channel, parameter);
            if (t == from) write_sample(t, channel, [&](int j) { return first_parameter(j); });
            if (t + 1 == to && p.state)
                for (int j = channel; j < 2 * channels; j += channels)
                    p.state[(row + 1) * p.state_size - 2 * channels + j] = own[j];
        }
    }

    __device__ float first_parameter(int i) const {
        const int channels = p.out_channels();
        if (p.old_state) return p.old_state[(row + 1) * p.state_size - 2 * channels + i];
        const bool log_sigma = (i >= channels) == p.mu_first;
        const float infinity = __uint_as_float(0x7f800000u);
        return !log_sigma ? 0.f : p.epilogue == Epilogue::affine ? -infinity : infinity;
    }

    template <class Parameter>
    __device__ void write_sample(int t, int channel, const Parameter& parameter) const {
        const int channels = p.out_channels();
        const int64_t at = (int64_t{row} * channels + channel) * p.out_time + p.place(t, length) + p.pending;
        if (p.epilogue == Epilogue::none) {
            p.out[at] = parameter(channel);
            return;
        }
        const float mu = parameter(p.mu_first ? channel : channels + channel);
        const float log_sigma = parameter(p.mu_first ? channels + channel : channel);
        const float in = (p.y ? p.y : p.x)[at];
        p.out[at] = p.epilogue == Epilogue::affine ? in * expf(log_sigma) + mu : (in - mu) * expf(-log_sigma);
    }

    __device__ bool in_shared(const void* pointer) const {
        const auto* at = static_cast<const unsigned char*>(pointer);
        return at >= shared_memory() && at < shared_memory() + p.shared_bytes;
    }

    const TileParams& p;
    Arena arena;
    int* drawn;
    const TileBuffers<T, Tile> b;
    const int R, G, S;
    int row, tile, length, first;
};

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::threads, 1) run_tiles(const __grid_constant__ TileParams p) {
    if constexpr (T::sm <= compiled_for) TileStack<T, Tile>(p).run();
}

// ---- before it: what is known of a call without its arithmetic
// -------------------------------------------------------

// each(i) for i < count, over all threads of the grid.
template <class Each>
__device__ void for_all(int64_t count, const Each& each) {
    for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x)
        each(i);
}

// Clears the flags; turns c into words of the product, time-major; writes zeros behind rows that have ended; and the
// part of the next state that this one holds already.
template <class T>
__global__ void prepare_tiles(const __grid_constant__ TileParams p) {
    for_all(1 + int64_t{p.rows} * p.tiles, [&](int64_t i) { p.drawn[i] = 0; });
    constexpr int per_word = 2 / T::words(2);
    if (p.c)
        for_all(int64_t{p.rows} * p.cond_stride / 4 * p.cond_time, [&](int64_t i) {
            const int64_t place = i % p.cond_time, part = i / p.cond_time % (p.cond_stride / 4),
                          row = i / p.cond_time / (p.cond_stride / 4);
            auto value = [&](int64_t channel) {
                return channel < p.cond_channels ? p.c[(row * p.cond_channels + channel) * p.cond_time + place] : 0.f;
            };
            uint32_t* to = p.cond + (row * p.cond_time + place) * p.cond_stride + 4 * part;
            for (int pair = 0; pair < 2 * per_word; ++pair) {
                const int64_t channel = per_word * 4 * part + 2 * pair;
                T::store(to, 2 * pair, value(channel), value(channel + 1));
            }
        });
    if (p.lengths)
        for_all(int64_t{p.rows} * p.out_channels() * p.out_time, [&](int64_t i) {
            const int row = static_cast<int>(i / p.out_time / p.out_channels());
            if (i % p.out_time >= p.pending + p.length(row)) p.out[i] = 0.f;
        });
    if (!p.state) return;

    // What the next state holds of columns [now - before - columns, now - before), where a call has made `made_from` on
    // and nothing lies outside [begin, length).
    int64_t at = 0;
    auto carry = [&](int columns, int channels, int before, const auto& made_from) {
        for_all(int64_t{p.rows} * columns * channels, [&](int64_t i) {
            const int row = static_cast<int>(i / channels / columns), column = static_cast<int>(i / channels % columns);
            const int length = p.length(row), now = p.now(length), t = now - before - columns + column;
            const int64_t to = row * p.state_size + at + i % (int64_t{columns} * channels);
            if (t < p.begin() || t >= length)
                p.state[to] = 0.f;
            else if (t < made_from(now, t))
                p.state[to] = p.old_state[to + int64_t{now} * channels];
        });
        at += int64_t{columns} * channels;
    };
    for_all(int64_t{p.rows} * p.history() * p.in_channels, [&](int64_t i) {
        const int channel = static_cast<int>(i % p.in_channels);
        const int column = static_cast<int>(i / p.in_channels % p.history());
        const int row = static_cast<int>(i / p.in_channels / p.history());
        const int length = p.length(row), now = p.now(length), t = now - p.history() + column;
        const int64_t to = row * p.state_size + i % (int64_t{p.history()} * p.in_channels);
        p.state[to] = t < 0        ? p.old_state[to + int64_t{now} * p.in_channels]
                      : t < length ? p.x[(int64_t{row} * p.in_channels + channel) * p.time + t]
                                   : 0.f;
    });
    at = int64_t{p.history()} * p.in_channels;
    int before = p.lag_front;
    for (int l = 0; l < p.layers; ++l) {
        carry(p.reach(l), p.residual, before, [&](int, int) { return p.made_from(before); });
        before += p.lag(l);
    }
    // of the skip sum, by the last layer that comes so far
    carry(p.pending_skip(), p.skip, p.look_ahead - p.pending_skip(), [&](int now, int t) {
        int after = p.lag_front + p.lag(0);
        for (int l = 1; l < p.layers && t < now - after - p.lag(l); ++l) after += p.lag(l);
        return p.made_from(after);
    });
}

}  // namespace fastwave::cuda
