// Products of packed weights and a tile of columns, by a block: sum += W_1 x_1 + W_2 x_2 + ...
//
// Weights stand as they do for the CPU (params.h), in panels of (words, 16); a column's words are contiguous. Both come
// through shared memory in slabs of 16 words of depth, some of them under way while one is multiplied. A warp has four
// panels, so filter and gate of the same channels, and `groups` times eight columns. Of each panel and group of columns
// lane (g, q) = (lane / 4, lane % 4) sums rows 2g and 2g + 1 of columns 2q and 2q + 1: the layout of mma.m16n8k16,
// whose rows g and g + 8 are the panel's 2g and 2g + 1 (product.cuh).
//
// A column is made by itself and in one order, so neither the tile nor what else is in it changes its bits.
#pragma once

#include "cuda/product.cuh"

namespace fastwave::cuda {

constexpr int warp_panels = 4;
constexpr int slab = 16;                          // words of depth
constexpr int slab_stride = column_stride(slab);  // of columns in shared memory
constexpr int slab_stages = 4;

// Warps along the rows, and along the columns.
template <int row_warps_, int column_warps_, int groups_>
struct Tile {
    static constexpr int row_warps = row_warps_, column_warps = column_warps_, groups = groups_;
    static constexpr int threads = 32 * row_warps * column_warps;
    static constexpr int panels = warp_panels * row_warps, columns = 8 * groups * column_warps;
    static constexpr int weight_words = panels * slab * panel;
    static constexpr int stage_words = weight_words + columns * slab_stride;
    static constexpr int staging_words = slab_stages * stage_words;

    __device__ __forceinline__ static int first_panel() {
        return warp_panels * (static_cast<int>(threadIdx.x / 32) / column_warps);
    }
    __device__ __forceinline__ static int first_column() {
        return 8 * groups * (static_cast<int>(threadIdx.x / 32) % column_warps);
    }
};

template <class Tile>
struct Sum {
    float value[warp_panels][Tile::groups][4];  // rows 2g and 2g + 1, each with columns 2q and 2q + 1

    // each(column)(i, row 2g, row 2g + 1) of the lane's columns in the tile, and of those of the warp's panels i, the
    // first of which is `first_panel`, that there are.
    template <class Each>
    __device__ __forceinline__ void for_each(int first_panel, int panels, const Each& each) const {
#pragma unroll
        for (int n = 0; n < Tile::groups; ++n)
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                const auto rows = each(Tile::first_column() + 8 * n + 2 * lane_quad() + k);
#pragma unroll
                for (int i = 0; i < warp_panels; ++i)
                    if (first_panel + i < panels) rows(i, value[i][n][k], value[i][n][2 + k]);
            }
    }
};

// sum += one slab: the warp's panels at `a`, its columns at `b`, `stride` words apart, of which `words` count.

template <class Tile>
__device__ __forceinline__ void multiply_slab(Bfloat16Mma, Sum<Tile>& sum, const uint32_t* a, const uint32_t* b,
                                              int stride, int words) {
    constexpr int groups = Tile::groups;
    const int lane = lane_index();
#pragma unroll
    for (int i = 0; i < slab; i += 8) {
        if (i >= words) break;
        uint32_t x[groups][2];
        if constexpr (groups == 1) {
            ldmatrix(x[0], b + lane % 8 * stride + i + lane / 8 % 2 * 4);
        } else {
#pragma unroll
            for (int n = 0; n < groups; n += 2) {
                uint32_t two[4];
                ldmatrix(two, b + (8 * (n + lane / 16) + lane % 8) * stride + i + lane / 8 % 2 * 4);
                x[n][0] = two[0], x[n][1] = two[1], x[n + 1][0] = two[2], x[n + 1][1] = two[3];
            }
        }
        const uint32_t* w = a + (i + lane_quad()) * panel + 2 * lane_group();
#pragma unroll
        for (int j = 0; j < warp_panels; ++j, w += slab * panel) {
            const uint2 early = *reinterpret_cast<const uint2*>(w),
                        late = *reinterpret_cast<const uint2*>(w + 4 * panel);
            const uint32_t rows[4] = {early.x, early.y, late.x, late.y};
#pragma unroll
            for (int n = 0; n < groups; ++n) mma_bfloat16(sum.value[j][n], rows, x[n]);
        }
    }
}

// The products of one word.
__device__ __forceinline__ void multiply_word(Float32, float& sum, uint32_t weight, uint32_t x) {
    sum = fmaf(__uint_as_float(weight), __uint_as_float(x), sum);
}
__device__ __forceinline__ void multiply_word(Bfloat16, float& sum, uint32_t weight, uint32_t x) {
    sum = fmaf(__uint_as_float(weight << 16), __uint_as_float(x << 16), sum);
    sum = fmaf(__uint_as_float(weight & 0xffff0000u), __uint_as_float(x & 0xffff0000u), sum);
}

template <class T, class Tile>
__device__ __forceinline__ void multiply_slab(T type, Sum<Tile>& sum, const uint32_t* a, const uint32_t* b, int stride,
                                              int words) {
    b += 2 * lane_quad() * stride;
    a += 2 * lane_group();
#pragma unroll 1
    for (int i = 0; i < words; i += 2) {
        uint2 x[Tile::groups][2];
#pragma unroll
        for (int n = 0; n < Tile::groups; ++n)
#pragma unroll
            for (int j = 0; j < 2; ++j) x[n][j] = *reinterpret_cast<const uint2*>(b + (8 * n + j) * stride + i);
#pragma unroll
        for (int k = 0; k < 2; ++k)
#pragma unroll
            for (int j = 0; j < warp_panels; ++j) {
                const uint2 w = *reinterpret_cast<const uint2*>(a + (j * slab + i + k) * panel);
#pragma unroll
                for (int n = 0; n < Tile::groups; ++n)
#pragma unroll
                    for (int column = 0; column < 2; ++column) {
                        const uint32_t value = k == 0 ? x[n][column].x : x[n][column].y;
                        multiply_word(type, sum.value[j][n][column], w.x, value);
                        multiply_word(type, sum.value[j][n][2 + column], w.y, value);
                    }
            }
    }
}

// Where a product stands in its depth.
struct Cursor {
    int segment = 0, word = 0;

    template <class Source>
    __device__ __forceinline__ void advance(const Source& source) {
        word += slab;
        if (word < source.words(segment)) return;
        word = 0;
        ++segment;
    }
};

// sum += the product's panels [first_panel, first_panel + Tile::panels), of `panels`. A source has segments, each a
// matrix and columns:
//
//   segments(), words(segment), matrix(segment)
//   load(segment, word, to): one slab of the columns to shared memory, by copy_async or at once, by all threads
//   staged(segment, word, loaded, stride): where that slab is read, and its stride
//
// What other threads wrote before is seen by `load`.
template <class T, class Tile, class Source>
__device__ __forceinline__ void multiply(Sum<Tile>& sum, uint32_t* staging, int first_panel, int panels,
                                         Source& source) {
    Cursor ahead, now;
    auto issue = [&](int n) {
        if (ahead.segment < source.segments()) {
            const int words = source.words(ahead.segment);
            const uint32_t* matrix = source.matrix(ahead.segment);
            uint32_t* to = staging + n % slab_stages * Tile::stage_words;
            for (int i = threadIdx.x; i < Tile::weight_words / 4; i += Tile::threads) {
                const int index = first_panel + i / (slab * 4), word = ahead.word + i / 4 % slab;
                const bool wanted = index < panels && word < words;
                const int64_t at = (int64_t{index} * words + word) * panel + i % 4 * 4;
                copy_async(to + 4 * i, wanted ? matrix + at : matrix, wanted);
            }
            source.load(ahead.segment, ahead.word, to + Tile::weight_words);
            ahead.advance(source);
        }
        commit_copies();
    };
    __syncthreads();  // the last product has been made
#pragma unroll 1
    for (int n = 1 - slab_stages; now.segment < source.segments(); ++n) {
        if (n >= 0) {
            wait_copies<slab_stages - 2>();
            __syncthreads();
        }
        issue(n + slab_stages - 1);
        if (n < 0) continue;
        const uint32_t* loaded = staging + n % slab_stages * Tile::stage_words;
        int stride = slab_stride;
        const uint32_t* b = source.staged(now.segment, now.word, loaded + Tile::weight_words, stride);
        if (first_panel + Tile::first_panel() < panels)
            multiply_slab(T{}, sum, loaded + Tile::first_panel() * slab * panel, b + Tile::first_column() * stride,
                          stride, min(slab, source.words(now.segment) - now.word));
        now.advance(source);
    }
}

}  // namespace fastwave::cuda
