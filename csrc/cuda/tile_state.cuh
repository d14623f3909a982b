// Before and after the tiles: what a call takes and leaves that is no arithmetic.
#pragma once

#include "cuda/product.cuh"
#include "cuda/tile_params.cuh"

namespace fastwave::cuda {

// each(i) for i < count, over all threads of the grid.
template <class Each>
__device__ void for_all(int64_t count, const Each& each) {
    for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x)
        each(i);
}

// each(row, column, channel) of all rows.
template <class Each>
__device__ void for_columns(const TileParams& p, int columns, int channels, const Each& each) {
    for_all(int64_t{p.rows} * columns * channels, [&](int64_t i) {
        each(static_cast<int>(i / channels / columns), static_cast<int>(i / channels % columns),
             static_cast<int>(i % channels));
    });
}

// Clears the flags, turns c into words of the product, time-major, writes zeros behind rows that have ended, and
// spreads the state over the rings.
template <class T>
__global__ void prepare_tiles(const __grid_constant__ TileParams p) {
    for_all(1 + int64_t{p.rows} * p.tiles, [&](int64_t i) { p.drawn[i] = 0; });
    if (p.c)
        for_all(int64_t{p.rows} * p.cond_stride * p.cond_time, [&](int64_t i) {
            const int64_t place = i % p.cond_time, word = i / p.cond_time % p.cond_stride,
                          row = i / p.cond_time / p.cond_stride;
            auto value = [&](int64_t channel) {
                return channel < p.cond_channels ? p.c[(row * p.cond_channels + channel) * p.cond_time + place] : 0.f;
            };
            uint32_t* to = p.cond + (row * p.cond_time + place) * p.cond_stride + word;
            *to = T::words(2) == 1 ? pack_bfloat16(value(2 * word), value(2 * word + 1)) : __float_as_uint(value(word));
        });
    if (p.lengths)
        for_columns(p, p.out_channels(), p.out_time, [&](int row, int channel, int at) {
            if (at >= p.pending + p.length(row))
                p.out[(int64_t{row} * p.out_channels() + channel) * p.out_time + at] = 0.f;
        });
    if (!p.state) return;

    const int history = p.history() * p.in_channels;
    for_columns(p, 1, p.came_size, [&](int row, int, int i) {
        const float* state = p.state + row * p.state_size;
        p.came[int64_t{row} * p.came_size + i] = state[i < history ? i : p.state_size - p.came_size + i];
    });
    LayerAt layer = p.layer();
    for (; layer.index != p.layers; layer = p.behind(layer))
        for_columns(p, layer.reach, padded_rows(p.residual) / 2, [&](int row, int column, int pair) {
            const int t = column - layer.reach - layer.before;
            const bool made = t < -layer.after;  // else the layer has not read it as its own column: then it is h
            float h[2] = {}, v[2] = {};
            for (int j = 0; j < 2; ++j) {
                const int channel = 2 * pair + j;
                if (channel >= p.residual || t < p.begin()) continue;
                h[j] = v[j] = p.state[row * p.state_size + layer.state_at + int64_t{column} * p.residual + channel];
                if (!made && p.u) v[j] += p.u[(int64_t{row} * p.layers + layer.index) * p.residual + channel];
            }
            const Ring<uint32_t> ring = layer.v.of_row(row);
            uint32_t* to = ring.at(ring.place(column - layer.reach));
            p.separable ? Float32::store(to, 2 * pair, v[0], v[1]) : T::store(to, 2 * pair, v[0], v[1]);
            if (made) return;
            const Ring<float> behind = layer.h.of_row(row);
            float* at = behind.at(behind.place(column - layer.reach)) + 2 * pair;
            at[0] = h[0];
            at[1] = h[1];
        });
    if (p.causal) return;
    const int64_t skip_at = layer.state_at;
    for_columns(p, p.pending_skip(), padded_rows(p.skip), [&](int row, int column, int channel) {
        const Ring<float> ring = p.skip_ring().of_row(row);
        ring.at(ring.place(column))[channel] =
            channel < p.skip ? p.state[row * p.state_size + skip_at + int64_t{column} * p.skip + channel] : 0.f;
    });
}

// The state after the call, from the rings: the last columns of everything that the next call's first columns read.
template <class T>
__global__ void keep_state(const __grid_constant__ TileParams p) {
    // state (columns, channels) from `at` on <- value(row, index, channel), index counted from `now - columns`; columns
    // before the first and from `length` on are zeros, where column t stands at t + lag
    auto keep = [&](int64_t at, int columns, int channels, int lag, const auto& value) {
        for_columns(p, columns, channels, [&](int row, int column, int channel) {
            const int length = p.length(row), index = p.now(length) - columns + column, t = index - lag;
            p.state[row * p.state_size + at + int64_t{column} * channels + channel] =
                t < p.begin() || t >= length ? 0.f : value(row, index, channel);
        });
    };
    const int history = p.history();
    for_columns(p, history, p.in_channels, [&](int row, int column, int channel) {
        const int length = p.length(row), t = p.now(length) - history + column;
        float value = 0.f;
        if (t < 0)
            value = p.came[int64_t{row} * p.came_size + (t + history) * p.in_channels + channel];
        else if (t < length)
            value = p.x[(int64_t{row} * p.in_channels + channel) * p.time + t];
        p.state[row * p.state_size + int64_t{column} * p.in_channels + channel] = value;
    });
    LayerAt layer = p.layer();
    for (; layer.index != p.layers; layer = p.behind(layer))
        keep(layer.state_at, layer.reach, p.residual, layer.before, [&](int row, int index, int channel) {
            if (index - layer.before >= p.now(p.length(row)) - layer.after) {
                const Ring<float> ring = layer.h.of_row(row);
                return ring.at(ring.place(index))[channel];
            }
            const Ring<uint32_t> ring = layer.v.of_row(row);
            const uint32_t* words = ring.at(ring.place(index));
            if (p.separable || T::words(2) == 2) return __uint_as_float(words[channel]);
            return __uint_as_float(channel % 2 ? words[channel / 2] & 0xffff0000u : words[channel / 2] << 16);
        });
    if (p.causal) return;
    // skip sums stand at t + look_ahead, those that the state holds from t = now - look_ahead on
    for_columns(p, p.pending_skip(), p.skip, [&](int row, int column, int channel) {
        const int length = p.length(row), index = p.now(length) + column, t = index - p.look_ahead;
        const Ring<float> ring = p.skip_ring().of_row(row);
        p.state[row * p.state_size + layer.state_at + int64_t{column} * p.skip + channel] =
            t < p.begin() || t >= length ? 0.f : ring.at(ring.place(index))[channel];
    });
}

}  // namespace fastwave::cuda
