// Plain structs that carry one call of an op from the bindings to a kernel, and the order of packed weights.
// Functions here are static: kernels are compiled once per instruction set, and none may lend its copy to another.
#pragma once

#include <stdint.h>

#include "cpu/team.h"

namespace fastwave {

// Packed matrices stand in panels of 16 output rows, (rows / 16, depth, 16), rows padded with zeros: a panel is one
// AVX-512 vector, two of AVX2, four of NEON or SSE. The order of accumulation is that of the depth. The unit is a word
// of 32 bits: one float32, two bfloat16 or four int8 of consecutive depth; an int8 panel ends in 16 scales (float32)
// and 16 offsets (int32, -128 times the row's sum).
constexpr int panel = 16;

constexpr int64_t max_layers = 512, max_taps = 32;  // of a stack; the bindings refuse more
constexpr int64_t max_rows = 8;                     // that wavenet_sample takes in lockstep

static inline int64_t padded(int64_t rows) { return (rows + panel - 1) / panel * panel; }

enum class Dtype { float32, bfloat16, int8 };

static inline int64_t depth_words(Dtype dtype, int64_t depth) {
    const int64_t per_word = dtype == Dtype::float32 ? 1 : dtype == Dtype::bfloat16 ? 2 : 4;
    return (depth + per_word - 1) / per_word;
}
static inline int64_t panel_words(Dtype dtype, int64_t depth) {
    return (depth_words(dtype, depth) + (dtype == Dtype::int8 ? 2 : 0)) * panel;
}
static inline int64_t matrix_words(Dtype dtype, int64_t rows, int64_t depth) {
    return padded(rows) / panel * panel_words(dtype, depth);
}

enum class Epilogue { none, affine, inverse };
enum class Delay { none, input, output };

// See fastwave/ops/gated_stack.py, GatedStackSpec.
struct StackShape {
    Dtype dtype;
    int64_t in_channels, front_width;
    bool front_causal, front_relu;
    int64_t residual, gate, skip, kernel_size, layers;
    const int64_t* dilations;
    bool causal;
    float residual_scale;
    int64_t cond_channels, cond_repeat, cond_taps;
    bool separable;
    int64_t heads;
    const int64_t* head_channels;
    const int64_t* head_relu;
    Epilogue epilogue;
    bool mu_first;
    Delay delay;

    [[gnu::always_inline]] int64_t reach(int64_t layer) const { return (kernel_size - 1) * dilations[layer]; }
    [[gnu::always_inline]] int64_t reach() const {
        int64_t sum = 0;
        for (int64_t layer = 0; layer < layers; ++layer) sum += reach(layer);
        return sum;
    }
    [[gnu::always_inline]] int64_t gate_rows() const { return 2 * padded(gate); }  // filter and gate panels in turn
    [[gnu::always_inline]] bool has_residual(int64_t layer) const { return layer + 1 < layers || skip == 0; }
    [[gnu::always_inline]] int64_t product_rows(int64_t layer) const {
        return (has_residual(layer) ? padded(residual) : 0) + padded(skip);
    }
    [[gnu::always_inline]] int64_t body_channels() const { return skip ? skip : residual; }  // what the head reads
    [[gnu::always_inline]] int64_t parameters() const { return heads ? head_channels[heads - 1] : body_channels(); }
    [[gnu::always_inline]] int64_t out_channels() const { return parameters() / (epilogue == Epilogue::none ? 1 : 2); }
    // Columns that a centred stage stands behind the input when it has made its latest one.
    [[gnu::always_inline]] int64_t lag_front() const { return front_causal ? 0 : front_width / 2; }
    [[gnu::always_inline]] int64_t lag(int64_t layer) const { return causal ? 0 : reach(layer) / 2; }
    [[gnu::always_inline]] int64_t lag() const { return causal ? 0 : reach() / 2; }
    [[gnu::always_inline]] int64_t look_ahead() const { return lag_front() + lag(); }
    // Columns of the skip sum that some layers have added to and others have not.
    [[gnu::always_inline]] int64_t pending_skip() const { return skip ? lag() - lag(0) : 0; }
    [[gnu::always_inline]] int64_t front_history() const { return front_width - 1 + (delay == Delay::input); }
    [[gnu::always_inline]] int64_t state_size() const {
        return front_history() * in_channels + reach() * residual + pending_skip() * skip +
               (delay == Delay::output ? parameters() : 0);
    }
    [[gnu::always_inline]] int64_t widest_head() const {
        int64_t widest = padded(body_channels());
        for (int64_t i = 0; i < heads; ++i)
            if (padded(head_channels[i]) > widest) widest = padded(head_channels[i]);
        return widest;
    }
};

// Packed weights, in the order in which a step reads them; each matrix behind its bias. The layers' matrices are in the
// stack's type, everything else in float32.
//   front (R, in front_width); per layer: bias (2G), A (2G, C), taps oldest first (2G, R) each,
//   residual and skip rows as one matrix (R + S, G); the head's matrices.
// A separable layer has, before its one tap, the depthwise convolution in float32: bias (R), taps oldest first (R)
// each.
struct LayerWeights {
    const float *bias, *cond, *depthwise, *taps, *product_bias, *product;
};

struct StackWeights {
    const float* base;  // null: only adds up
    int64_t words = 0;  // walked through so far: the front, then the layers, then the heads
    const float *front_bias, *front;

    [[gnu::always_inline]] StackWeights(const float* weights, const StackShape& s)
        : base(weights),
          front_bias(take(padded(s.residual))),
          front(take(padded(s.residual) * s.in_channels * s.front_width)) {}

    [[gnu::always_inline]] LayerWeights layer(const StackShape& s, int64_t index) {
        LayerWeights w;
        w.bias = take(s.gate_rows());
        w.cond = take(s.cond_channels ? matrix_words(s.dtype, s.gate_rows(), s.cond_channels) : 0);
        w.depthwise = take(s.separable ? (1 + s.kernel_size) * padded(s.residual) : 0);
        w.taps = take((s.separable ? 1 : s.kernel_size) * matrix_words(s.dtype, s.gate_rows(), s.residual));
        w.product_bias = take(s.product_rows(index));
        w.product = take(matrix_words(s.dtype, s.product_rows(index), s.gate));
        return w;
    }

    // bias (rows), then the matrix (rows, depth)
    [[gnu::always_inline]] const float* head(int64_t rows, int64_t depth) { return take(padded(rows) * (1 + depth)); }

private:
    [[gnu::always_inline]] const float* take(int64_t count) {
        const float* piece = base ? base + words : nullptr;
        words += count;
        return piece;
    }
};

static inline int64_t packed_size(const StackShape& s) {
    StackWeights w(nullptr, s);
    for (int64_t i = 0; i < s.layers; ++i) w.layer(s, i);
    int64_t depth = s.body_channels();
    for (int64_t i = 0; i < s.heads; ++i) {
        w.head(s.head_channels[i], depth);
        depth = s.head_channels[i];
    }
    return w.words;
}

// Called now and then by a kernel, which returns early when the answer is true.
typedef bool (*Poll)(void* context);

// One row of a batch. Absent tensors are null. All are contiguous, time last, but for the state: (state_size), the
// interpolation: (columns, cond_taps), and what is projected. Columns are counted from the first of x. Those of c, of
// the interpolation, of y and of out begin at -pending, the first column that was read and not yet made. In place of c
// and g there may be what `project` made of them.
struct GatedStackParams {
    StackShape shape;
    const float* weights;
    const float *x, *c, *interpolation, *g, *u, *y;  // (in, time), see below, .., (L, 2G), (L, R), (out, out_time)
    const float* projected;                          // (L gate_rows / 16, columns, 16), panels `panel_stride` apart
    int64_t panel_stride;
    float *state, *out;                 // out: (out, out_time)
    int64_t time, cond_time, out_time;  // allocated columns
    int64_t cond_group;                 // c: (C / cond_group, cond_time, cond_group)
    int64_t pending;                    // <= look_ahead
    int64_t length;                     // valid columns, from -pending to time
    bool last;                          // no more columns will come
    bool reverse;
    float* workspace;  // gated_stack_workspace(shape, threads of the team) floats
    Team* team;        // shares the layers, or their rows; null: alone
    Poll poll;
    void* poll_context;
};

// A_l c + b_l + g_l of every layer, for several calls that read the same c.
struct ProjectParams {
    StackShape shape;
    const float* weights;
    const float *c, *g;  // (C / cond_group, cond_time, cond_group), (L, 2G)
    float* out;          // (L gate_rows / 16, cond_time, 16)
    int64_t cond_time, cond_group;
    float* workspace;  // project_workspace(shape) floats
    Team* team;        // splits the layers; null: alone
    Poll poll;
    void* poll_context;
};

enum class Distribution { gaussian, mixture_of_gaussians, mixture_of_logistics, softmax };

// Several rows of a batch in lockstep; see fastwave/ops/wavenet_sample.py.
struct WaveNetSampleParams {
    StackShape shape;
    const float* weights;
    Distribution distribution;
    float log_scale_min, clamp, temperature;
    const float* table;  // (classes)
    const float *noise, *c, *g, *forced;
    float *state, *samples, *parameters;  // parameters may be null
    const int64_t* lengths;               // per row, or null
    int64_t rows, time, noise_channels, cond_time, forced_time, state_size;
    float* workspace;  // wavenet_sample_workspace(shape, rows) floats
    Team* team;        // splits a product's panels; null: alone
    Poll poll;
    void* poll_context;
};

struct UpsampleParams {
    int64_t n_mels, stages, freq_kernel;
    const int64_t* scales;
    float slope;
    int64_t context;
    bool context_conv, causal;
    const float* weights;  // per stage: bias (1), phases (K, 3, s); then context (n_mels, n_mels, 2 context + 1)
    const float* mel;      // (n_mels, frames), one row of a batch
    float* out;            // (n_mels, out_frames * prod(scales))
    int64_t frames, first, out_frames;
    float* workspace;  // upsample_workspace floats
};

}  // namespace fastwave
