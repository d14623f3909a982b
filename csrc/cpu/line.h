// How a gated stack is cut into stages, and their buffers.
#pragma once

#include "cpu/stack.h"

namespace fastwave::FASTWAVE_ISA {

namespace {

constexpr int64_t many_words = 128 * 1024;  // of a layer's weights, for threads to share its rows where layers are few
constexpr int64_t stages_per_thread = 4;    // so that a thread whose own must wait finds another
constexpr int64_t slack = 2;                // turns that a stage may have made and the next one not

// How threads share a stack. Stages stand in line: a thread keeps the weights and rings of its own layers in its cache,
// and waits for nobody as long as the stage before is ahead. But where layers are few, and have weights enough to fill
// a cache, all threads are on one stage, each with its rows of every product.
struct Plan {
    int64_t stages = 1;
    int64_t parts = 1;                    // threads on a stage
    int64_t first[max_stages + 1] = {0};  // layer of each stage

    Plan(const StackShape& s, int64_t threads) {
        auto words = [&](int64_t layer) {
            return (s.separable ? 1 : s.kernel_size) * matrix_words(s.dtype, s.gate_rows(), s.residual) +
                   (s.cond_channels ? matrix_words(s.dtype, s.gate_rows(), s.cond_channels) / s.cond_repeat : 0) +
                   matrix_words(s.dtype, s.product_rows(layer), s.gate);
        };
        int64_t most = 0, total = 0;
        for (int64_t l = 0; l < s.layers; ++l) {
            total += words(l);
            if (words(l) > most) most = words(l);
        }
        if (threads == 1 || s.layers < 2 || (s.layers < 2 * threads && most >= many_words)) {
            parts = threads;
        } else {  // of about as many words each
            stages = stages_per_thread * threads < s.layers ? stages_per_thread * threads : s.layers;
            int64_t sum = 0, stage = 1;
            for (int64_t l = 0; stage < stages; ++l) {
                sum += words(l);
                if (sum * stages >= total * stage || s.layers - l - 1 == stages - stage) first[stage++] = l + 1;
            }
        }
        first[stages] = s.layers;
    }

    // Columns that are under way, between the first stage's latest and the last one's oldest.
    int64_t columns() const { return stages == 1 ? chunk : slack * (stages - 1) * chunk; }
};

// A ring of columns in time order.
struct Ring {
    float* data;
    int64_t capacity, stride;
    float* at(int64_t t) const { return data + ((t % capacity + capacity) % capacity) * stride; }
    // pointers to columns t, t + 1, ..., t + n - 1
    template <class Pointer>
    void columns(Pointer* out, int64_t t, int64_t n) const {
        int64_t index = (t % capacity + capacity) % capacity;
        for (int64_t i = 0; i < n; ++i) {
            out[i] = data + index * stride;
            if (++index == capacity) index = 0;
        }
    }
};

// A stage's own. `z_words` is what the products read of z, in words of T.
struct Scratch {
    float *column, *cond_columns, *window, *projected, *depthwise, *z, *z_words, *head_a, *head_b;
};

// What stages share: `zeros`, the ring `cond` and the rings v hold what products read, in words of T.
template <class T>
struct Buffers {
    float *zeros, *bias, *parameters;
    int64_t zero_floats;
    Ring skip, cond;
    Ring h[max_layers + 1], v[max_layers + 1];  // v: h + u, rounded where a product reads it
    Scratch scratch[max_stages];

    Buffers(Arena& arena, const StackShape& s, const Plan& plan) {
        const int64_t rows = s.gate_rows(), columns = plan.columns() + s.look_ahead();
        const int64_t v_stride = s.separable ? padded(s.residual) : T::column_words(s.residual);
        zero_floats = v_stride > rows ? v_stride : rows;
        zeros = arena.take(zero_floats);
        bias = arena.take(s.layers * rows);
        parameters = arena.take(s.parameters());
        skip = {arena.take(s.skip ? columns * padded(s.skip) : 0), columns, padded(s.skip)};
        const int64_t keys = s.cond_channels == 0 ? 0 : columns / s.cond_repeat + s.cond_taps + 2;
        const int64_t cond_words = apart(T::column_words(s.cond_channels));
        cond = {arena.take(keys * cond_words), keys, cond_words};
        for (int64_t stage = 0; stage < plan.stages; ++stage) {
            const bool last = stage + 1 == plan.stages;
            for (int64_t l = plan.first[stage]; l < plan.first[stage + 1] + last; ++l) {
                const bool handed_over = stage > 0 && l == plan.first[stage];
                const int64_t capacity = (handed_over ? slack * chunk : chunk) + (l < s.layers ? s.reach(l) : 0);
                h[l] = {arena.take(capacity * padded(s.residual)), capacity, padded(s.residual)};
                v[l] = {arena.take(capacity * v_stride), capacity, v_stride};
            }
            Scratch& own = scratch[stage];
            own.column = arena.take(plan.parts * padded(s.residual));
            own.z = arena.take(chunk * padded(s.gate));
            own.z_words = arena.take(T::same_as_float ? 0 : chunk * T::column_words(s.gate));
            own.projected =
                arena.take(s.cond_channels == 0 ? 0 : (chunk / s.cond_repeat + 2 + plan.parts * s.cond_taps) * rows);
            own.depthwise = arena.take(s.separable ? chunk * (padded(s.residual) + T::column_words(s.residual)) : 0);
            if (stage == 0) {
                own.cond_columns = arena.take(s.cond_channels ? plan.parts * turned * turning(s.cond_channels) : 0);
                own.window = arena.take((chunk + plan.parts * s.front_width) * s.in_channels);
            }
            if (last) {
                own.head_a = arena.take(chunk * s.widest_head());
                own.head_b = arena.take(chunk * s.widest_head());
            }
        }
    }
};

}  // namespace

}  // namespace fastwave::FASTWAVE_ISA
