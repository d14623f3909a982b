// A call of gated_stack as its CUDA kernels take it: sizes, tensors, and where things lie in the workspace.
//
// Tiles are counted so that every stage is causal. A centred stage stands `lag` columns behind (params.h): tile j of a
// stage is columns [j n - lag, (j + 1) n - lag). So a stage of a tile needs the stage before of that tile and of
// earlier ones, never of later ones.
#pragma once

#include <climits>

#include "cuda/stack.cuh"

namespace fastwave::cuda {

// Columns in time order, of one row.
template <class Word>
struct Ring {
    Word* data;
    int capacity, stride;

    __host__ __device__ Ring of_row(int row) const {
        return {data + int64_t{row} * capacity * stride, capacity, stride};
    }
    // Where column `index` stands, and the column that comes so many, fewer than `capacity`, behind a place.
    __device__ int place(int index) const { return (index % capacity + capacity) % capacity; }
    __device__ Word* at(int place, int column = 0) const {
        place += column;
        return data + int64_t{place < capacity ? place : place - capacity} * stride;
    }
};

// A layer, as the stages pass it. Column t of what it reads stands in its rings at t + before. What the state held of
// it lies before column 0.
struct LayerAt {
    int index, before, after;  // lags of what it reads, and of what it makes
    int dilation, reach;
    const uint32_t* weights;
    int64_t state_at;  // in a row's state
    uint32_t* rings;   // of all rows
    Ring<uint32_t> v;  // of row 0
    Ring<float> h;     // likewise, of a centred stack
};

struct TileParams : StackSizes {
    bool causal, separable, mu_first;
    int cond_taps, lag_front, look_ahead;
    Epilogue epilogue;
    Delay delay;

    const float *x, *c, *interpolation, *g, *u, *y;
    float *state, *out;
    const int64_t* lengths;
    int64_t state_size;
    int rows, time, cond_time, out_time, pending;
    bool last, reverse;

    // workspace
    int* drawn;             // tiles, by all blocks
    int* stages;            // (row, tile): that a tile has behind it
    float* came;            // (row, came_size): what the state came with of the front's input, and the last parameters
    uint32_t* cond;         // (row, cond_time, cond_stride): c in words of the product
    uint32_t* rings;        // (layer): v (row, capacity, v_stride), and in a centred stack h (row, capacity, R)
    float* skip_sums;       // (row, look_ahead + columns_under_way(), S) of a centred stack
    unsigned char* blocks;  // block_bytes for each block
    int64_t block_bytes;
    int columns;  // of a tile
    int came_size, cond_stride, v_stride, tiles, under_way, shared_bytes;

    __host__ __device__ int head_rows(int i) const { return padded_rows(head_channels[i]); }
    __host__ __device__ int body() const { return skip ? skip : residual; }
    __host__ __device__ int parameters() const { return heads ? head_channels[heads - 1] : body(); }
    __host__ __device__ int out_channels() const { return parameters() / (epilogue == Epilogue::none ? 1 : 2); }
    __host__ __device__ int history() const { return front_width - 1 + (delay == Delay::input); }
    __host__ __device__ int reach(int layer) const { return (kernel_size - 1) * dilations[layer]; }
    __host__ __device__ int lag(int layer) const { return causal ? 0 : reach(layer) / 2; }
    __host__ __device__ int pending_skip() const { return skip ? look_ahead - lag_front - lag(0) : 0; }
    __host__ __device__ int late() const { return delay == Delay::output ? parameters() : 0; }
    __host__ __device__ bool by_frames() const { return cond_channels && (cond_repeat > 1 || cond_taps > 1); }
    __host__ __device__ int columns_under_way() const { return min(under_way, tiles) * columns; }
    __host__ __device__ int64_t ring_words(int layer) const {
        return int64_t{rows} * (reach(layer) + columns_under_way()) * (v_stride + (causal ? 0 : padded_rows(residual)));
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
    __device__ int begin() const { return state && pending == look_ahead ? INT_MIN / 2 : -pending; }
    // Where the state ends: it holds the columns before.
    __device__ int now(int length) const { return look_ahead == 0 ? length : time; }
    __device__ int place(int t, int length) const { return reverse ? length - 1 - t : t; }
    // The column of c that column t stands at.
    __device__ int cond_place(int t, int length) const {
        auto key = [&](int at) { return at >= 0 ? at / cond_repeat : -((cond_repeat - 1 - at) / cond_repeat); };
        return reverse ? (length - 1 - t) / cond_repeat : key(t) - key(-pending) + cond_taps / 2;
    }

    // ---- the layers: the first, and the one behind a layer. Behind the last stands one without reach, whose input is
    // what the head reads.
    __host__ __device__ LayerAt layer() const {
        return layer(0, lag_front, first_layer, int64_t{history()} * in_channels, rings);
    }
    __host__ __device__ LayerAt behind(const LayerAt& before) const {
        return layer(before.index + 1, before.after, before.weights + layer_words,
                     before.state_at + int64_t{before.reach} * residual, before.rings + ring_words(before.index));
    }
    __host__ __device__ Ring<float> skip_ring() const {
        return {skip_sums, look_ahead + columns_under_way(), padded_rows(skip)};
    }

private:
    __host__ __device__ LayerAt layer(int index, int before, const uint32_t* weights, int64_t state_at,
                                      uint32_t* at) const {
        LayerAt layer = {index, before, before, 0, 0, weights, state_at, at, {}, {}};
        if (index == layers) return layer;
        layer.after += lag(index);
        layer.dilation = dilations[index];
        layer.reach = reach(index);
        const int capacity = layer.reach + columns_under_way();
        layer.v = {at, capacity, v_stride};
        layer.h = {reinterpret_cast<float*>(at + int64_t{rows} * capacity * v_stride), capacity, padded_rows(residual)};
        return layer;
    }
};

}  // namespace fastwave::cuda
