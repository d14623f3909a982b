// Products of packed weights and a few columns, by one warp: 16 rows, a panel, at a time.
//
// Weights stand as they do for the CPU (params.h): a panel is (words, 16). Of it lane (g, q) = (lane / 4, lane % 4)
// takes rows 2g and 2g + 1 of words q, q + 4, q + 8, ...: 8 bytes a time, 256 contiguous ones for the warp, from
// registers, shared or global memory alike. It ends with those two rows of columns 2q and 2q + 1: the layout of
// mma.m16n8k16, whose rows g and g + 8 are the panel's 2g and 2g + 1, and whose order of depths is the columns' too.
//
// Each column is made by itself and in one order, so neither the others nor their number change its bits.
#pragma once

#include "cuda/ptx.cuh"
#include "params.h"

namespace fastwave::cuda {

constexpr unsigned all_lanes = ~0u;

struct Fragment {
    float value[2][2];  // (row, column)
};

__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x % 32); }
__device__ __forceinline__ int lane_group() { return lane_index() / 4; }
__device__ __forceinline__ int lane_quad() { return lane_index() % 4; }

// Words between columns: room for whole steps of 8, and an odd multiple of 4, so that lanes' reads meet in no bank.
__host__ __device__ constexpr int column_stride(int words) { return (words + 7) / 8 * 8 + 4; }

// A lane's i-th words of a panel: those of rows 2g and 2g + 1 with index 4 i + q.
template <int unroll_>
struct InMemory {
    static constexpr int unroll = unroll_;
    const uint32_t* panel;
    int words;
    __device__ __forceinline__ uint2 operator()(int i) const {
        const int word = 4 * i + lane_quad();
        if (word >= words) return {0, 0};
        return *reinterpret_cast<const uint2*>(panel + word * 16 + 2 * lane_group());
    }
};

template <int words>
struct InRegisters {
    static constexpr int unroll = words / 4;  // wholly: an index known only at run time would move them to memory
    uint2 held[words / 4];
    template <class Source>
    __device__ __forceinline__ void load(const Source& source) {
#pragma unroll
        for (int i = 0; i < words / 4; ++i) held[i] = source(i);
    }
    __device__ __forceinline__ uint2 operator()(int i) const { return held[i]; }
};

// A lane's sums over its own words; added up over the four lanes q, and to the result.
template <int columns>
__device__ __forceinline__ void add_quads(Fragment& result, const float (&sum)[2][columns]) {
    const bool late = lane_quad() & 2, odd = lane_quad() & 1;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        if constexpr (columns == 1) {
            float all = sum[row][0];
            all += __shfl_xor_sync(all_lanes, all, 2);
            all += __shfl_xor_sync(all_lanes, all, 1);
            result.value[row][0] += all;
        } else {
            static_assert(columns == 8);
            float half[4];
#pragma unroll
            for (int i = 0; i < 4; ++i)
                half[i] = (late ? sum[row][4 + i] : sum[row][i]) +
                          __shfl_xor_sync(all_lanes, late ? sum[row][i] : sum[row][4 + i], 2);
#pragma unroll
            for (int i = 0; i < 2; ++i)
                result.value[row][i] +=
                    (odd ? half[2 + i] : half[i]) + __shfl_xor_sync(all_lanes, odd ? half[i] : half[2 + i], 1);
        }
    }
}

// What products run in, from architecture `sm` on. store() writes two neighbouring channels, the first even, of a
// column; multiply() adds a panel's product with `columns` columns of `words` words, `stride` words apart.

struct Float32 {
    static constexpr Dtype dtype = Dtype::float32;
    static constexpr int sm = 0;
    __host__ __device__ static constexpr int words(int depth) { return depth; }
    __device__ static void store(uint32_t* column, int channel, float first, float second) {
        *reinterpret_cast<uint2*>(column + channel) = {__float_as_uint(first), __float_as_uint(second)};
    }
    template <int columns, class Source>
    __device__ __forceinline__ static void multiply(Fragment& result, const Source& source, int words,
                                                    const uint32_t* x, int stride) {
        float sum[2][columns] = {};
#pragma unroll Source::unroll
        for (int i = 0; 4 * i < words; ++i) {
            const uint2 w = source(i);
            const uint32_t* at = x + 4 * i + lane_quad();
#pragma unroll
            for (int column = 0; column < columns; ++column) {
                const float value = __uint_as_float(at[column * stride]);
                sum[0][column] = fmaf(__uint_as_float(w.x), value, sum[0][column]);
                sum[1][column] = fmaf(__uint_as_float(w.y), value, sum[1][column]);
            }
        }
        add_quads(result, sum);
    }
};

// Two bfloat16 to a word, the even channel in the low half.
struct Bfloat16Words {
    static constexpr Dtype dtype = Dtype::bfloat16;
    __host__ __device__ static constexpr int words(int depth) { return (depth + 1) / 2; }
    __device__ static void store(uint32_t* column, int channel, float first, float second) {
        column[channel / 2] = pack_bfloat16(first, second);
    }
};

// Where there is no matrix instruction for bfloat16: before sm_80.
struct Bfloat16 : Bfloat16Words {
    static constexpr int sm = 0;
    template <int columns, class Source>
    __device__ __forceinline__ static void multiply(Fragment& result, const Source& source, int words,
                                                    const uint32_t* x, int stride) {
        float sum[2][columns] = {};
#pragma unroll Source::unroll
        for (int i = 0; 4 * i < words; ++i) {
            const uint2 w = source(i);
            const uint32_t* at = x + 4 * i + lane_quad();
#pragma unroll
            for (int column = 0; column < columns; ++column) {
                const uint32_t pair = at[column * stride];
                const float low = __uint_as_float(pair << 16), high = __uint_as_float(pair & 0xffff0000u);
                sum[0][column] = fmaf(__uint_as_float(w.x << 16), low, sum[0][column]);
                sum[0][column] = fmaf(__uint_as_float(w.x & 0xffff0000u), high, sum[0][column]);
                sum[1][column] = fmaf(__uint_as_float(w.y << 16), low, sum[1][column]);
                sum[1][column] = fmaf(__uint_as_float(w.y & 0xffff0000u), high, sum[1][column]);
            }
        }
        add_quads(result, sum);
    }
};

// A matrix instruction makes eight columns whether they are wanted or not. Even and odd steps have sums of their own:
// each waits for the one before it.
struct Bfloat16Mma : Bfloat16Words {
    static constexpr int sm = 80;
    template <int columns, class Source>
    __device__ __forceinline__ static void multiply(Fragment& result, const Source& source, int words,
                                                    const uint32_t* x, int stride) {
        float sum[2][4] = {};
        const bool wanted = lane_group() < columns;
        const uint32_t* at = x + (wanted ? lane_group() : 0) * stride + lane_quad();
        auto step = [&](float (&to)[4], int i) {
            const uint2 early = source(2 * i), late = source(2 * i + 1);
            const uint32_t a[4] = {early.x, early.y, late.x, late.y};
            const uint32_t b[2] = {wanted ? at[8 * i] : 0, wanted ? at[8 * i + 4] : 0};
            mma_bfloat16(to, a, b);
        };
#pragma unroll Source::unroll
        for (int i = 0; 8 * i < words; i += 2) {
            step(sum[0], i);
            if (8 * i + 8 < words) step(sum[1], i + 1);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) result.value[i / 2][i % 2] += sum[0][i] + sum[1][i];
    }
};

}  // namespace fastwave::cuda
