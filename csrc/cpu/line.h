// How a gated stack is cut into stages, their buffers, and what they share.
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

// What the stages of a call have in common.
template <class T>
struct Stack {
    const GatedStackParams& p;
    const StackShape& s;
    Buffers<T>& buffers;
    StackWeights weights{p.weights, s};
    LayerWeights layers[max_layers];
    // Where v is not h, a causal stage needs of h only the chunk at hand: one buffer, updated in place.
    const bool apart = p.u || !(T::same_as_float || s.separable);
    // Before this column there are zeros. A state that holds all it can has them in itself.
    const int64_t begin = p.state && p.pending == s.look_ahead() ? -(int64_t{1} << 62) : -p.pending;
    const int64_t margin = s.cond_taps / 2;  // columns of c on either side of the one that a column stands at
    const int64_t end = p.last ? p.length + s.look_ahead() : p.time;  // of the columns that the front is given

    Stack(const GatedStackParams& params, Buffers<T>& room, const Plan& plan)
        : p(params), s(params.shape), buffers(room) {
        for (int64_t stage = 0, l = 0; l <= s.layers; ++l) {
            if (stage + 1 < plan.stages && l == plan.first[stage + 1]) ++stage;
            if (apart && s.causal) buffers.h[l] = buffers.h[plan.first[stage]];
            if (!apart) buffers.v[l] = buffers.h[l];
            if (l < s.layers) layers[l] = weights.layer(s, l);
        }
        for (int64_t stage = 0; stage < plan.stages; ++stage)
            memset(buffers.scratch[stage].column, 0, plan.parts * padded(s.residual) * sizeof(float));
        memset(buffers.zeros, 0, buffers.zero_floats * sizeof(float));
        load_bias(buffers.bias, s, layers, p.g);
    }

    // Column t of the running time, forwards or backwards, as it stands in memory.
    int64_t place(int64_t t) const { return p.reverse ? p.length - 1 - t : t; }

    // The conditioning column that column t of the running time reads, numbered so that it never falls as t rises.
    int64_t cond_key(int64_t t) const {
        if (p.reverse) return (p.length - 1) / s.cond_repeat - (p.length - 1 - t) / s.cond_repeat;
        return t >= 0 ? t / s.cond_repeat : -((s.cond_repeat - 1 - t) / s.cond_repeat);
    }
    int64_t cond_place(int64_t key) const {
        return p.reverse ? (p.length - 1) / s.cond_repeat - key : key - cond_key(-p.pending) + margin;
    }

    // A column as a ring v holds it.
    void hold(float* to, const float* from) const {
        if (s.separable)
            memcpy(to, from, padded(s.residual) * sizeof(float));
        else
            T::round(to, from, s.residual);
    }

    // What layer `index` convolves: h + u, rounded.
    void round(int64_t index, int64_t first, int64_t n, float* sum) const {
        if (!apart || index == s.layers) return;
        const float* from[chunk];
        float* to[chunk];
        buffers.h[index].columns(from, first, n);
        buffers.v[index].columns(to, first, n);
        for (int64_t t = 0; t < n; ++t) {
            if (p.u) {
                for (int64_t i = 0; i < s.residual; ++i) sum[i] = from[t][i] + p.u[index * s.residual + i];
                from[t] = sum;
            }
            hold(to[t], from[t]);
        }
    }
};

}  // namespace

}  // namespace fastwave::FASTWAVE_ISA
