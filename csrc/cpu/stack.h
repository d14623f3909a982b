// What the kernels of a gated stack share: their workspace, and the head.
#pragma once

#include <string.h>

#include "cpu/product.h"

namespace fastwave::FASTWAVE_ISA {

// Hands out pieces of a workspace; with a null base it only adds them up.
struct Arena {
    float* next;
    int64_t used = 0;
    [[gnu::always_inline]] float* take(int64_t floats) {
        float* piece = next ? next + used : nullptr;
        used += padded(floats);
        return piece;
    }
};

template <class Part>
FASTWAVE_INLINE void run_parts(Team* team, decltype(Team::split) Team::* how, const Part& part) {
    if (!team) return part(0, 1);
    (team->*how)(
        team, [](void* context, int64_t i, int64_t parts) { (*static_cast<const Part*>(context))(i, parts); },
        const_cast<Part*>(&part));
}

// part(i, parts) for each i below `parts`, on the threads of a team.
template <class Part>
FASTWAVE_INLINE void split(Team* team, const Part& part) {
    run_parts(team, &Team::split, part);
}

// The same on `parts` threads at once; with 1, alone.
template <class Part>
FASTWAVE_INLINE void together(Team* team, const Part& part) {
    run_parts(team, &Team::together, part);
}

// part(stage, turn) for each stage and turn of a line, on the threads of a team.
template <class Part>
FASTWAVE_INLINE void pipeline(Team* team, Line line, const Part& part) {
    if (team)
        return team->pipeline(
            team, line,
            [](void* context, int64_t stage, int64_t turn) { (*static_cast<const Part*>(context))(stage, turn); },
            const_cast<Part*>(&part));
    for (int64_t turn = 0; turn < line.turns; ++turn)
        for (int64_t stage = 0; stage < line.stages; ++stage) part(stage, turn);
}

// Part i of `panels` panels that must stay in groups of `unit`.
FASTWAVE_INLINE Panels panels_of(int64_t panels, int64_t unit, int64_t i, int64_t parts) {
    const int64_t units = panels / unit;
    return {units * i / parts * unit, units * (i + 1) / parts * unit};
}

constexpr int64_t chunk = 96;  // columns that go through a product at once; a multiple of every tile_columns

// Words from a wide column to the next: an odd number of cache lines. Of columns a multiple of 4 KB apart a product
// would read a dozen lines that all have their place in one set of the first-level cache.
constexpr int64_t apart(int64_t words) { return (words + 15) / 16 * 16 | 16; }

// bias (L, gate_rows) <- bias plus the row's own vectors g, per layer, in panel order.
static void load_bias(float* bias, const StackShape& s, const LayerWeights* layers, const float* g) {
    for (int64_t l = 0; l < s.layers; ++l, bias += s.gate_rows()) {
        memcpy(bias, layers[l].bias, s.gate_rows() * sizeof(float));
        if (g) add_gate_rows(bias, bias, g + l * 2 * s.gate, s.gate);
    }
}

constexpr int64_t turned = 16;  // columns that are turned at once, at the most: a cache line of each band

// Floats between columns while they are turned: one behind another they would fall into the same set of a cache.
FASTWAVE_INLINE int64_t turning(int64_t channels) { return padded(channels) + panel; }

// A few floats; a call of memcpy would take longer than they do.
FASTWAVE_INLINE void copy(float* to, const float* from, int64_t n) {
    for (; n >= 8; n -= 8, to += 8, from += 8) memcpy(to, from, 8 * sizeof(float));
    if (n & 4) memcpy(to, from, 4 * sizeof(float));
    if (n & 2) memcpy(to + (n & 4), from + (n & 4), 2 * sizeof(float));
    if (n & 1) to[n - 1] = from[n - 1];
}

// words(i) <- column i of n, which are `step` (1 or -1) apart. A column's channels are `group` neighbours of each band;
// bands stand `stride` apart. `columns` has room for turned * turning(channels) floats.
template <class T, class Words>
static void load_columns(const Words& words, float* columns, const float* c, int64_t channels, int64_t stride,
                         int64_t n, int64_t step = 1, int64_t group = 1) {
    // columns in a cache line of a band; in half of a first-level cache; and at once
    const int64_t apart = turning(channels), line = (turned + group - 1) / group;
    const int64_t fit = 4096 / channels, most = fit < line ? line : fit < turned ? fit : turned;
    for (int64_t first = 0; first < n; first += most) {
        const int64_t count = n - first < most ? n - first : most;
        for (int64_t ch = 0; ch < channels; ch += group) {
            const float* from = c + ch / group * stride + first * step * group;
            if (group == 1)
                for (int64_t i = 0; i < count; ++i) columns[i * apart + ch] = from[i * step];
            else
                for (int64_t i = 0; i < count; ++i) copy(columns + i * apart + ch, from + i * step * group, group);
        }
        for (int64_t i = 0; i < count; ++i) {
            for (int64_t ch = channels; ch < padded(channels); ++ch) columns[i * apart + ch] = 0.f;
            T::round(words(first + i), columns + i * apart, channels);
        }
    }
}

// The head's products over n columns `from`, each behind its ReLU; in and out are two sets of columns that take turns,
// so that the result is in `out` after an odd number of products and in `in` after an even one.
[[maybe_unused]] static void run_heads(const StackShape& s, StackWeights weights, int64_t n, const float* const* from,
                                       float** in, float** out, const float** init) {
    int64_t depth = s.body_channels();
    const bool relu = s.heads && s.head_relu[0];
    for (int64_t i = 0; i < n; ++i)
        for (int64_t at = 0; at < padded(depth); at += width) {
            const vec value = load(from[i] + at);
            store(in[i] + at, relu ? max(splat(0.f), value) : value);
        }
    for (int64_t l = 0; l < s.heads; ++l) {
        const int64_t rows = s.head_channels[l];
        const float* bias = weights.head(rows, depth);
        for (int64_t i = 0; i < n; ++i) init[i] = bias;
        const Segment segment = {bias + padded(rows), depth, in};
        product<Float32>({0, padded(rows) / panel}, n, &segment, 1, init,
                         StorePlain{out, l + 1 < s.heads && s.head_relu[l + 1]});
        float** swapped = in;
        in = out;
        out = swapped;
        depth = rows;
    }
}

}  // namespace fastwave::FASTWAVE_ISA
