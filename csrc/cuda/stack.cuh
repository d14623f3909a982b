// What the kernels of a gated stack share: its sizes, a block's memory, the gate.
#pragma once

#include "cuda/ptx.cuh"
#include "params.h"

namespace fastwave::cuda {

constexpr int max_heads = 64;

// Of a StackShape (params.h) what kernels read.
struct StackSizes {
    int residual, gate, skip, kernel_size, layers, cond_channels, cond_repeat, in_channels, front_width, heads;
    bool front_relu;
    float residual_scale;
    int dilations[max_layers], head_channels[max_heads];
    bool head_relu[max_heads];

    // Packed weights: the front, the layers, and the head, each matrix behind its bias.
    const uint32_t *front, *first_layer, *head;
    int64_t layer_words, cond_at, depthwise_at, taps_at, product_at;  // of a layer, and where its parts begin

    void set_sizes(const StackShape& s) {
        residual = static_cast<int>(s.residual);
        gate = static_cast<int>(s.gate);
        skip = static_cast<int>(s.skip);
        kernel_size = static_cast<int>(s.kernel_size);
        layers = static_cast<int>(s.layers);
        cond_channels = static_cast<int>(s.cond_channels);
        cond_repeat = static_cast<int>(s.cond_repeat);
        in_channels = static_cast<int>(s.in_channels);
        front_width = static_cast<int>(s.front_width);
        front_relu = s.front_relu;
        residual_scale = s.residual_scale;
        heads = static_cast<int>(s.heads);
        for (int i = 0; i < layers; ++i) dilations[i] = static_cast<int>(s.dilations[i]);
        for (int i = 0; i < heads; ++i) {
            head_channels[i] = static_cast<int>(s.head_channels[i]);
            head_relu[i] = s.head_relu[i] != 0;
        }
    }

    void set_weights(const float* packed, const StackShape& s) {
        StackWeights weights(packed, s);
        auto words = [](const float* at) { return reinterpret_cast<const uint32_t*>(at); };
        front = words(weights.front_bias);
        for (int64_t l = 0; l < s.layers; ++l) {
            const LayerWeights layer = weights.layer(s, l);
            if (l > 0) continue;
            first_layer = words(layer.bias);
            layer_words = weights.base + weights.words - layer.bias;
            cond_at = layer.cond - layer.bias;
            depthwise_at = layer.depthwise - layer.bias;
            taps_at = layer.taps - layer.bias;
            product_at = layer.product_bias - layer.bias;
        }
        head = words(weights.base + weights.words);
    }
};

__host__ __device__ constexpr int padded_rows(int rows) { return (rows + panel - 1) / panel * panel; }
__host__ __device__ constexpr int larger(int a, int b) { return a > b ? a : b; }

// Pieces of the block's shared memory while there is some, then of its part of the workspace. Every thread asks alike.
struct Arena {
    unsigned char* shared;
    int64_t shared_left;
    unsigned char* global;
    int64_t global_used;

    template <class T>
    __host__ __device__ T* take(int64_t count) {
        const int64_t bytes = (count * static_cast<int64_t>(sizeof(T)) + 15) / 16 * 16;
        if (bytes > shared_left) return take_global<T>(count);
        unsigned char* piece = shared;
        if (shared) shared += bytes;
        shared_left -= bytes;
        return reinterpret_cast<T*>(piece);
    }

    template <class T>
    __host__ __device__ T* take_global(int64_t count) {
        unsigned char* piece = global ? global + global_used : nullptr;
        global_used += (count * static_cast<int64_t>(sizeof(T)) + 15) / 16 * 16;
        return reinterpret_cast<T*>(piece);
    }
};

// tanh(filter) sigmoid(gate), by two exponentials and one division; the bounds are those of csrc/cpu/simd.h.
__device__ __forceinline__ float gated(float filter, float gate) {
    const float e = expf(-2.f * fmaxf(-9.5f, fminf(9.5f, filter)));
    const float h = expf(-fmaxf(-60.f, fminf(60.f, gate)));
    const float value = (1.f - e) / ((1.f + e) * (1.f + h));
    return filter != filter || gate != gate ? filter + gate : value;
}

}  // namespace fastwave::cuda
