// Matrix product of packed weights and columns that pointers name: the inner loop of every CPU kernel.
#pragma once

#include "cpu/words.h"

namespace fastwave::FASTWAVE_ISA {

// weight: panels of `depth` inputs, in words of the product's type; x[n]: the words of column n. Of them [begin, end),
// which an integer type, whose sums end in a scale, must leave whole.
struct Segment {
    const float* weight;
    int64_t depth;
    const float* const* x;
    int64_t begin = 0, end = INT64_MAX;
};

template <int P, int N>
using Tile = vec[N][P][vectors];

// acc += W x over one segment.
template <class T, int P, int N>
FASTWAVE_INLINE void add_segment(Tile<P, N>& acc, int64_t first_panel, int64_t column, const Segment& segment) {
    const int64_t all = depth_words(T::dtype, segment.depth), stride = panel_words(T::dtype, segment.depth);
    const int64_t words = (segment.end < all ? segment.end : all) - segment.begin;
    const float* w = segment.weight + first_panel * stride + segment.begin * panel;
    const float* x[N];
    for (int n = 0; n < N; ++n) x[n] = segment.x[column + n] + segment.begin;
    if constexpr (T::integer) {
        typename T::Sum sum[N][P];
        for (int n = 0; n < N; ++n)
            for (int p = 0; p < P; ++p) T::start(sum[n][p], w + p * stride + words * panel);
#pragma GCC unroll 2
        for (int64_t k = 0; k < words; ++k)
            for (int n = 0; n < N; ++n)
                for (int p = 0; p < P; ++p) T::accumulate(sum[n][p], w + p * stride + k * panel, x[n] + k);
        for (int p = 0; p < P; ++p)
            for (int v = 0; v < vectors; ++v) {
                const vec scale = load(w + p * stride + words * panel + v * width);
                for (int n = 0; n < N; ++n) {
                    const vec x_scale = splat(x[n][T::scale_at(segment.depth)]);
                    acc[n][p][v] = fma(to_float(T::finish(sum[n][p], v)), scale * x_scale, acc[n][p][v]);
                }
            }
    } else {
#pragma GCC unroll 2
        for (int64_t k = 0; k < words; ++k, w += panel) {
            vec weight[P][vectors];
            for (int p = 0; p < P; ++p) {
                for (int v = 0; v < vectors; ++v) weight[p][v] = load(w + p * stride + v * width);
                // the same of the next tile's panels, into the second-level cache: a panel is a page or two, where the
                // hardware's own prefetching ends. With one column there is no time for it.
                if constexpr (N > 1) __builtin_prefetch(w + (P + p) * stride, 0, 2);
            }
            for (int n = 0; n < N; ++n) {  // one input at a time: accumulators and weights fill the registers
                const vec input = splat(x[n][k]);
                for (int p = 0; p < P; ++p)
                    for (int v = 0; v < vectors; ++v) T::accumulate(acc[n][p][v], weight[p][v], input);
            }
        }
    }
}

// What a column's sum starts from: a vector, its panels `panel_stride` apart, and to it `taps` others behind one
// another, each times its weight: the conditioning between two frames, say. frames[n]: the first of them, `stride`
// apart; weights[n]: how much of each.
struct Init {
    const float* const* base;
    int64_t panel_stride = panel;
    int64_t taps = 0, stride = 0;
    const float* const* frames = nullptr;
    const float* const* weights = nullptr;

    [[gnu::always_inline]] Init(const float* const* columns) : base(columns) {}

    [[gnu::always_inline]] vec operator()(int64_t column, int64_t q, int64_t v) const {
        vec sum = load(base[column] + q * panel_stride + v);
        for (int64_t k = 0; k < taps; ++k)
            sum = fma(load(frames[column] + k * stride + q * panel + v), splat(weights[column][k]), sum);
        return sum;
    }
};

// acc <- init; acc += W x, segment by segment, depth by depth: one order for every output, whatever the tile, so that
// neither the chunking nor the batch can change a bit of it.
template <class T, int P, int N, class Store>
FASTWAVE_INLINE void tile(int64_t first_panel, int64_t column, const Segment* segments, int count, const Init& init,
                          const Store& store_tile) {
    Tile<P, N> acc;
    for (int n = 0; n < N; ++n)
        for (int p = 0; p < P; ++p)
            for (int v = 0; v < vectors; ++v) acc[n][p][v] = init(column + n, first_panel + p, v * width);
    for (int s = 0; s < count; ++s) add_segment<T, P, N>(acc, first_panel, column, segments[s]);
    store_tile.template operator()<P, N>(first_panel, column, acc);
}

template <class T, int P, class Store>
static void all_columns(int64_t first_panel, int64_t columns, const Segment* segments, int count, const Init& init,
                        const Store& store_tile) {
    constexpr int widest = P <= 2 || tile_columns < 4 ? tile_columns : 4;
    int64_t n = 0;
    for (; n + widest <= columns; n += widest) tile<T, P, widest>(first_panel, n, segments, count, init, store_tile);
    if constexpr (widest > 8)
        for (; n + 8 <= columns; n += 8) tile<T, P, 8>(first_panel, n, segments, count, init, store_tile);
    if constexpr (widest > 4)
        for (; n + 4 <= columns; n += 4) tile<T, P, 4>(first_panel, n, segments, count, init, store_tile);
    if constexpr (widest > 2)
        for (; n + 2 <= columns; n += 2) tile<T, P, 2>(first_panel, n, segments, count, init, store_tile);
    for (; n < columns; ++n) tile<T, P, 1>(first_panel, n, segments, count, init, store_tile);
}

// Panels of a matrix's rows.
struct Panels {
    int64_t first, end;
};

// out = init + sum of segments, for some panels and `columns` columns; `store_tile` takes each finished tile of P
// panels by N columns. Gate rows need pairs: filter and gate panels come in turn.
template <class T, class Store>
static void product(Panels panels, int64_t columns, const Segment* segments, int count, const Init& init,
                    const Store& store_tile) {
    const int64_t end = panels.end;
    int64_t p = panels.first;
    // with few columns only panels can hide the latency of the multiply-add
    constexpr int many = vectors == 1 ? 8 : vectors == 2 ? 4 : 2;
    if (columns == 1)
        for (; p + many <= end; p += many) tile<T, many, 1>(p, 0, segments, count, init, store_tile);
    if constexpr (many > 4)
        if (columns <= 4)
            for (; p + 4 <= end; p += 4) all_columns<T, 4>(p, columns, segments, count, init, store_tile);
    for (; p + 2 <= end; p += 2) all_columns<T, 2>(p, columns, segments, count, init, store_tile);
    for (; p < end; ++p) all_columns<T, 1>(p, columns, segments, count, init, store_tile);
}

// z <- tanh(filter) sigmoid(gate), 16 channels of z per pair of panels.
struct StoreGated {
    float* const* z;
    template <int P, int N>
    [[gnu::always_inline]] void operator()(int64_t first_panel, int64_t column, Tile<P, N>& acc) const {
        if constexpr (P % 2 == 0)
            for (int n = 0; n < N; ++n)
                for (int p = 0; p < P; p += 2)
                    for (int v = 0; v < vectors; ++v)
                        store(z[column + n] + (first_panel + p) / 2 * panel + v * width,
                              gated(acc[n][p][v], acc[n][p + 1][v]));
    }
};

// h <- (h + R z + r) scale for the residual panels, skip (+)= S z + s for the others.
struct StoreResidualSkip {
    int64_t residual_panels;
    const float* const* h;
    float* const* h_next;
    float* const* skip;
    float scale;
    bool first;  // the skip sum starts here
    template <int P, int N>
    [[gnu::always_inline]] void operator()(int64_t first_panel, int64_t column, Tile<P, N>& acc) const {
        for (int n = 0; n < N; ++n)
            for (int p = 0; p < P; ++p)
                for (int v = 0; v < vectors; ++v) {
                    const int64_t q = first_panel + p;
                    if (q < residual_panels) {
                        const int64_t at = q * panel + v * width;
                        store(h_next[column + n] + at, (load(h[column + n] + at) + acc[n][p][v]) * splat(scale));
                    } else {
                        float* s = skip[column + n] + (q - residual_panels) * panel + v * width;
                        store(s, first ? acc[n][p][v] : load(s) + acc[n][p][v]);
                    }
                }
    }
};

struct StorePlain {
    float* const* out;
    bool relu;
    int64_t panel_stride = panel;
    template <int P, int N>
    [[gnu::always_inline]] void operator()(int64_t first_panel, int64_t column, Tile<P, N>& acc) const {
        for (int n = 0; n < N; ++n)
            for (int p = 0; p < P; ++p)
                for (int v = 0; v < vectors; ++v)
                    store(out[column + n] + (first_panel + p) * panel_stride + v * width,
                          relu ? max(splat(0.f), acc[n][p][v]) : acc[n][p][v]);
    }
};

// Logical gate rows, filter half before gate half, to panels in turn; the padding is 0.
// out (2 padded(gate)) <- base + rows; base may be out.
FASTWAVE_INLINE void add_gate_rows(float* out, const float* base, const float* rows, int64_t gate) {
    for (int64_t i = 0; i < padded(gate); ++i) {
        const int64_t at = i / panel * 2 * panel + i % panel;
        out[at] = base[at] + (i < gate ? rows[i] : 0.f);
        out[at + panel] = base[at + panel] + (i < gate ? rows[gate + i] : 0.f);
    }
}

}  // namespace fastwave::FASTWAVE_ISA
