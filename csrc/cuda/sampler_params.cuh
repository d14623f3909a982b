// A call of wavenet_sample as its CUDA kernels take it: sizes, tensors, how a kernel holds weights, and a block's
// buffers.
#pragma once

#include "cuda/hop.cuh"
#include "cuda/product.cuh"
#include "cuda/stack.cuh"
#include "heads.h"

namespace fastwave::cuda {

// One launch: samples [start, start + steps) of every row. Sizes are the stack's (params.h).
struct SamplerParams : StackSizes {
    Distribution distribution;
    float log_scale_min, clamp, temperature;
    const float *table, *noise, *c, *g, *forced;
    float *state, *samples, *parameters;
    const int64_t* lengths;
    int64_t rows, time, noise_channels, cond_time, forced_time, state_size;

    int start, steps;
    int stage_layers;  // of each stage, but for the last ones
    int groups;        // of the largest pipeline
    int shared_bytes;
    unsigned char* workspace;  // block_bytes for each block
    int64_t block_bytes;
    float* rings;  // (pipeline, layer), see Layer
    uint4* boxes;
    int64_t pipeline_packets;
    int* status;  // 0, or 1 + a stage that has waited in vain
};

// Sizes known only to the launch, or when compiling. Then a block's first `gates` layers keep their gate's current tap
// in registers, and the first `residuals` of them the residual product too: a warp holds a filter and a gate panel, and
// a panel of the residual product if there are so many.
struct AnySize {
    static constexpr int residual = 0, gate = 0, gates = 0, residuals = 0, threads = 256;
    static constexpr int unroll = 4;  // of products from memory
};

template <int residual_, int gate_, int gates_, int residuals_>
struct Size {
    static constexpr int residual = residual_, gate = gate_, gates = gates_, residuals = residuals_;
    static constexpr int threads = 2 * gate;
    static constexpr int unroll = 1;  // or too few registers would be left
    static_assert(residual <= gate && residuals <= gates);
};

struct Layer {
    const uint32_t *current, *residual, *skip, *past, *cond;
    const float *bias, *residual_bias, *skip_bias;
    float* ring;  // (group, reach, columns, R)
    int64_t state_at;
    int reach, dilation;
};

// A block's buffers. What a message fills comes first: it must stand at the same place in every block.
template <class T, int columns>
struct Buffers {
    int h_words, x_stride, skip_words, sample_words, z_stride, past_stride, head_stride, front_words, units, segments;
    uint64_t* barriers;  // (kind, group)
    uint32_t* residual;  // (group): h, float32 (columns, R); then h as the products read it (columns, x_stride)
    uint32_t* skip;      // (group): float32 (columns, S)
    uint32_t* sample;    // (group): the sample, or its class (columns)
    uint32_t *z, *past;  // (layer, columns, z_stride); (segment, columns, past_stride)
    uint32_t* heads[2];  // (columns, head_stride)
    Layer* layers;
    float *front, *inputs;  // (group, columns, R): all but the newest tap; (group, columns, front_width)
    Fragment* ahead;        // (group, layer, unit, lane, filter or gate)

    __host__ __device__ Buffers(Arena& arena, const SamplerParams& p, int layer_count) {
        const int R = padded_rows(p.residual), G = padded_rows(p.gate), S = padded_rows(p.skip);
        h_words = columns * R;
        x_stride = column_stride(T::words(R));
        skip_words = columns * S;
        sample_words = (columns + 3) / 4 * 4;
        z_stride = column_stride(T::words(G));
        past_stride = column_stride(T::words(larger(R, padded_rows(p.cond_channels))));
        int widest = larger(S, R);
        for (int i = 0; i < p.heads; ++i) widest = larger(widest, padded_rows(p.head_channels[i]));
        head_stride = column_stride(widest);
        front_words = columns * R;
        units = G / panel;
        segments = p.kernel_size - 1 + (p.cond_channels > 0);

        barriers = arena.take<uint64_t>(message_kinds * p.groups);
        residual = arena.take<uint32_t>(int64_t{p.groups} * residual_words());
        skip = arena.take<uint32_t>(int64_t{p.groups} * skip_words);
        sample = arena.take<uint32_t>(int64_t{p.groups} * sample_words);
        z = arena.take<uint32_t>(int64_t{layer_count} * columns * z_stride);
        heads[0] = arena.take<uint32_t>(int64_t{columns} * head_stride);
        heads[1] = arena.take<uint32_t>(int64_t{columns} * head_stride);
        layers = arena.take<Layer>(layer_count);
        front = arena.take<float>(int64_t{p.groups} * front_words);
        inputs = arena.take<float>(int64_t{p.groups} * columns * p.front_width);
        past = arena.take<uint32_t>(int64_t{segments} * columns * past_stride);
        ahead = arena.take<Fragment>(int64_t{p.groups} * layer_count * units * 64);
    }

    __host__ __device__ int residual_words() const { return h_words + columns * x_stride; }
    __host__ int64_t message_bytes(int64_t groups) const {
        return groups * (8 * message_kinds + 4 * (residual_words() + skip_words + sample_words)) + 16;
    }
};

}  // namespace fastwave::cuda
