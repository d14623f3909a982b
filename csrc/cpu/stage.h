// The work of a gated stack's stages on a chunk of columns.
#pragma once

#include "cpu/line.h"

namespace fastwave::FASTWAVE_ISA {

namespace {

constexpr int64_t deep = 1024;  // words of c that are multiplied at once: two panels and a chunk of them fit a cache

// One thread's share of a chunk: columns [first, first + n), the first of which is the chunk's column `offset`.
struct Columns {
    int64_t first, n, offset, part;
};

// Some layers in a row, with the front before the first and the head behind the last.
template <class T>
class Stage {
public:
    Stage(const Stack<T>& stack, const Plan& plan, int64_t index)
        : stack(stack),
          p(stack.p),
          s(stack.s),
          buffers(stack.buffers),
          own(stack.buffers.scratch[index]),
          team(plan.stages == 1 ? p.team : nullptr),
          margin(stack.margin),
          first_layer(plan.first[index]),
          end_layer(plan.first[index + 1]),
          lag(s.lag_front()) {
        for (int64_t l = 0; l < first_layer; ++l) lag += s.lag(l);
    }
    // Makes what can be made once the front has columns [start, start + columns) of x.
    void run(int64_t start, int64_t columns) const;

private:
    const Stack<T>& stack;
    const GatedStackParams& p;
    const StackShape& s;
    const Buffers<T>& buffers;
    const Scratch& own;
    Team* team;                                   // shares the columns, or the rows; null: alone
    int64_t margin, first_layer, end_layer, lag;  // lag: columns that the stage's input stands behind x

    template <class Run>
    void by_columns(int64_t first, int64_t n, const Run& run) const;
    // What the head made of a column of the chunk.
    const float* made(int64_t offset) const {
        return (s.heads % 2 ? own.head_b : own.head_a) + offset * s.widest_head();
    }
    void load_conditioning(int64_t start, int64_t columns) const;
    void front(Columns columns) const;
    void layer(int64_t index, int64_t first, int64_t n) const;
    void filter(int64_t index, Columns columns) const;
    void gates(int64_t index, Columns columns, Panels panels) const;
    void round_gates(Columns columns) const;
    void products(int64_t index, Columns columns, Panels panels) const;
    void taps(const float** out, int64_t index, Columns columns, int64_t tap) const;
    float* filtered(int64_t place) const;
    void round(int64_t index, Columns columns) const {
        stack.round(index, columns.first, columns.n, own.column + columns.part * padded(s.residual));
    }
    void head(Columns columns) const;
    void write(Columns columns) const;
};

// Threads share the columns [first, first + n).
template <class T>
template <class Run>
void Stage<T>::by_columns(int64_t first, int64_t n, const Run& run) const {
    split(team, [&](int64_t i, int64_t parts) {
        const int64_t from = n * i / parts, to = n * (i + 1) / parts;
        if (from < to) run(Columns{first + from, to - from, from, i});
    });
}

// Transposes the raw conditioning columns that the chunk at `start` is the first to read into their ring.
template <class T>
void Stage<T>::load_conditioning(int64_t start, int64_t columns) const {
    if (!p.c) return;
    const int64_t first = stack.cond_key(-p.pending) - margin;
    auto loaded = [&](int64_t ready) {
        const int64_t keys = stack.cond_key((ready < p.length ? ready : p.length) - 1) + 1 + margin;
        return keys > first ? keys : first;
    };
    const int64_t from = start == 0 ? first : loaded(start - lag), end = loaded(start + columns - lag);
    if (end <= from) return;
    by_columns(from, end - from, [&](Columns keys) {
        load_columns<T>([&](int64_t i) { return buffers.cond.at(keys.first + i); },
                        own.cond_columns + keys.part * turned * turning(s.cond_channels),
                        p.c + stack.cond_place(keys.first) * p.cond_group, s.cond_channels, p.cond_time * p.cond_group,
                        keys.n, p.reverse ? -1 : 1, p.cond_group);
    });
}

template <class T>
void Stage<T>::front(Columns columns) const {
    // window: inputs [first - left, first + n + right) time-major; a column's taps are contiguous in it
    const int64_t in = s.in_channels, delay = s.delay == Delay::input, n = columns.n;
    const int64_t left = s.front_width - 1 - s.lag_front(), history = s.front_history();
    float* window = own.window + (columns.offset + columns.part * s.front_width) * in;
    for (int64_t ch = 0; ch < in; ++ch)
        for (int64_t i = 0; i < n + s.front_width - 1; ++i) {
            const int64_t t = columns.first - left - delay + i;
            window[i * in + ch] = t >= p.length              ? 0.f
                                  : t >= 0                   ? p.x[ch * p.time + stack.place(t)]
                                  : p.state && t >= -history ? p.state[(t + history) * in + ch]
                                                             : 0.f;
        }
    const float* x[chunk];
    const float* init[chunk];
    float* out[chunk];
    for (int64_t i = 0; i < n; ++i) x[i] = window + i * in;
    for (int64_t i = 0; i < n; ++i) init[i] = stack.weights.front_bias;
    buffers.h[0].columns(out, columns.first, n);
    const Segment segment = {stack.weights.front, in * s.front_width, x};
    product<Float32>({0, padded(s.residual) / panel}, n, &segment, 1, init, StorePlain{out, s.front_relu});
}

// Pointers to what tap `tap` of layer `index` reads.
template <class T>
void Stage<T>::taps(const float** out, int64_t index, Columns columns, int64_t tap) const {
    const int64_t t = columns.first - s.reach(index) + s.lag(index) + tap * s.dilations[index];
    buffers.v[index].columns(out, t, columns.n);
    for (int64_t i = 0; i < columns.n; ++i)
        if (t + i >= p.length || t + i < stack.begin) out[i] = buffers.zeros;
}

// Where a depthwise convolution's result stands, in float32, and in words of T padded(residual) floats behind it.
template <class T>
float* Stage<T>::filtered(int64_t place) const {
    return own.depthwise + place * (padded(s.residual) + T::column_words(s.residual));
}

// The depthwise convolution of a separable layer, oldest tap first, rounded.
template <class T>
void Stage<T>::filter(int64_t index, Columns columns) const {
    if (!s.separable) return;
    const int64_t channels = padded(s.residual);
    const float* from[max_taps][chunk];
    for (int64_t j = 0; j < s.kernel_size; ++j) taps(from[j], index, columns, j);
    for (int64_t i = 0; i < columns.n; ++i) {
        float* sum = filtered(columns.offset + i);
        for (int64_t at = 0; at < channels; at += width) {
            vec value = load(stack.layers[index].depthwise + at);
            for (int64_t j = 0; j < s.kernel_size; ++j)
                value =
                    fma(load(stack.layers[index].depthwise + (1 + j) * channels + at), load(from[j][i] + at), value);
            store(sum + at, value);
        }
        as_words<T>(sum + channels, sum, s.residual);
    }
}

// z of layer `index` for some columns, and of it the channels of some panels.
template <class T>
void Stage<T>::gates(int64_t index, Columns columns, Panels panels) const {
    const int64_t first = columns.first, n = columns.n, rows = s.gate_rows();
    const float* init[chunk];
    const float* cond[chunk + max_taps];
    Segment segments[max_taps + 1];
    int count = 0;
    const float* bias = buffers.bias + index * rows;
    for (int64_t i = 0; i < n; ++i) init[i] = bias;
    Init start = init;
    const float *frames[chunk], *weights[chunk];
    if (p.projected) {
        for (int64_t i = 0; i < n; ++i)
            init[i] = p.projected + index * (rows / panel) * p.panel_stride +
                      stack.cond_place(stack.cond_key(first + i)) * panel;
        start.panel_stride = p.panel_stride;
    } else if (p.c && s.cond_repeat == 1 && !margin) {
        buffers.cond.columns(cond, first, n);
        Segment segment = {stack.layers[index].cond, s.cond_channels, cond};
        const int64_t words = T::integer ? 0 : depth_words(T::dtype, s.cond_channels);
        for (segment.end = deep; segment.end < words; segment.begin = segment.end, segment.end += deep) {
            float* sums[chunk];
            for (int64_t i = 0; i < n; ++i) sums[i] = own.projected + (columns.offset + i) * rows;
            product<T>(panels, n, &segment, 1, init, StorePlain{sums, false});
            for (int64_t i = 0; i < n; ++i) init[i] = sums[i];
        }
        segment.end = INT64_MAX;
        segments[count++] = segment;
    } else if (p.c) {
        const int64_t key = stack.cond_key(first) - margin, keys = stack.cond_key(first + n - 1) + margin - key + 1;
        // two threads may want one column of c: each makes its own
        const int64_t place = key + margin - stack.cond_key(first - columns.offset) + columns.part * s.cond_taps;
        float* projected[chunk + max_taps];
        const float* from[chunk + max_taps];
        for (int64_t i = 0; i < keys; ++i) {
            projected[i] = own.projected + (place + i) * rows;
            cond[i] = buffers.cond.at(key + i);
            from[i] = margin ? buffers.zeros : bias;
        }
        const Segment segment = {stack.layers[index].cond, s.cond_channels, cond};
        product<T>(panels, keys, &segment, 1, from, StorePlain{projected, false});
        for (int64_t i = 0; i < n; ++i) {
            frames[i] = projected[stack.cond_key(first + i) - margin - key];
            if (!margin) init[i] = frames[i];
        }
        if (margin) {
            for (int64_t i = 0; i < n; ++i) weights[i] = p.interpolation + (first + i + p.pending) * s.cond_taps;
            start.taps = s.cond_taps, start.stride = rows, start.frames = frames, start.weights = weights;
        }
    }

    const float* x[max_taps][chunk];
    if (s.separable) {
        const int64_t words = T::same_as_float ? 0 : padded(s.residual);
        for (int64_t i = 0; i < n; ++i) x[0][i] = filtered(columns.offset + i) + words;
        segments[count++] = {stack.layers[index].taps, s.residual, x[0]};
    } else {
        for (int64_t j = 0; j < s.kernel_size; ++j) {
            taps(x[j], index, columns, j);
            segments[count++] = {stack.layers[index].taps + j * matrix_words(T::dtype, rows, s.residual), s.residual,
                                 x[j]};
        }
    }
    float* z[chunk];
    for (int64_t i = 0; i < n; ++i) z[i] = own.z + (columns.offset + i) * padded(s.gate);
    product<T>(panels, n, segments, count, start, StoreGated{z});
}

template <class T>
void Stage<T>::round_gates(Columns columns) const {
    for (int64_t i = columns.offset; i < columns.offset + columns.n; ++i)
        as_words<T>(own.z_words + i * T::column_words(s.gate), own.z + i * padded(s.gate), s.gate);
}

// Some panels of residual and skip.
template <class T>
void Stage<T>::products(int64_t index, Columns columns, Panels panels) const {
    const int64_t first = columns.first, n = columns.n;
    const float* h_now[chunk];
    float* h_next[chunk];
    float* skip[chunk];
    buffers.h[index].columns(h_now, first, n);
    buffers.h[index + 1].columns(h_next, first, n);
    if (s.skip) buffers.skip.columns(skip, first, n);
    const float *x[chunk], *init[chunk];
    for (int64_t i = 0; i < n; ++i) {
        const int64_t place = columns.offset + i;
        init[i] = stack.layers[index].product_bias;
        x[i] = T::same_as_float ? own.z + place * padded(s.gate) : own.z_words + place * T::column_words(s.gate);
    }
    const Segment segment = {stack.layers[index].product, s.gate, x};
    const int64_t residual_panels = s.has_residual(index) ? padded(s.residual) / panel : 0;
    product<T>(panels, n, &segment, 1, init,
               StoreResidualSkip{residual_panels, h_now, h_next, skip, s.residual_scale, index == 0});
}

template <class T>
void Stage<T>::head(Columns columns) const {
    const int64_t stride = s.widest_head();
    const float* from[chunk];
    const float* init[chunk];
    float *in[chunk], *out[chunk];
    (s.skip ? buffers.skip : buffers.h[s.layers]).columns(from, columns.first, columns.n);
    for (int64_t i = 0; i < columns.n; ++i) {
        in[i] = own.head_a + (columns.offset + i) * stride;
        out[i] = own.head_b + (columns.offset + i) * stride;
    }
    run_heads(s, stack.weights, columns.n, from, in, out, init);
}

// The epilogue, and back to time-contiguous memory. Sample t takes the parameters of column t, or of column t - 1
// with a delayed output, the first of which waited in `buffers.parameters`.
template <class T>
void Stage<T>::write(Columns columns) const {
    const int64_t channels = s.out_channels();
    const float* y = p.y ? p.y : p.x;
    const float* parameters[chunk];
    for (int64_t i = 0; i < columns.n; ++i) {
        const int64_t column = columns.offset + i - (s.delay == Delay::output);
        parameters[i] = column < 0 ? buffers.parameters : made(column);
    }
    for (int64_t ch = 0; ch < channels; ++ch)
        for (int64_t i = 0; i < columns.n; ++i) {
            const int64_t at = ch * p.out_time + stack.place(columns.first + i) + p.pending;
            if (s.epilogue == Epilogue::none) {
                p.out[at] = parameters[i][ch];
            } else {
                const float mu = parameters[i][s.mu_first ? ch : channels + ch];
                const float log_sigma = parameters[i][s.mu_first ? channels + ch : ch];
                p.out[at] = s.epilogue == Epilogue::affine ? y[at] * __builtin_expf(log_sigma) + mu
                                                           : (y[at] - mu) * __builtin_expf(-log_sigma);
            }
        }
}

// Layer `index` for n columns: reads its own rings, writes into the next layer's. Threads that share a stage have its
// weights' rows, each for all columns.
template <class T>
void Stage<T>::layer(int64_t index, int64_t first, int64_t n) const {
    const Panels all_gates = {0, s.gate_rows() / panel}, all_products = {0, s.product_rows(index) / panel};
    const Columns all = {first, n, 0, 0};
    if (s.separable) by_columns(first, n, [&](Columns columns) { filter(index, columns); });
    split(team, [&](int64_t i, int64_t parts) { gates(index, all, panels_of(all_gates.end, 2, i, parts)); });
    if (!T::same_as_float) by_columns(first, n, [&](Columns columns) { round_gates(columns); });
    split(team, [&](int64_t i, int64_t parts) { products(index, all, panels_of(all_products.end, 1, i, parts)); });
    if (stack.apart) by_columns(first, n, [&](Columns columns) { round(index + 1, columns); });
}

template <class T>
void Stage<T>::run(int64_t start, int64_t columns) const {
    if (p.poll && p.poll(p.poll_context)) return;
    // columns [first, first + n) of what runs `lag` columns behind the input
    auto span = [&](int64_t lag, int64_t& first) {
        const int64_t done = lag < p.pending ? -lag : -p.pending;
        first = start - lag > done ? start - lag : done;
        int64_t end = start + columns - lag;
        if (!p.last && end > p.time - lag) end = p.time - lag;
        return (end < p.length ? end : p.length) - first;
    };
    int64_t first, behind = lag, n = span(behind, first);
    if (first_layer == 0) {
        if (n > 0) {
            by_columns(first, n, [&](Columns columns) {
                front(columns);
                round(0, columns);
            });
        }
        load_conditioning(start, columns);
    }
    for (int64_t l = first_layer; l < end_layer; ++l) {
        behind += s.lag(l);
        n = span(behind, first);
        if (n > 0) layer(l, first, n);
    }
    if (end_layer == s.layers && n > 0) {
        by_columns(first, n, [&](Columns columns) { head(columns); });
        by_columns(first, n, [&](Columns columns) { write(columns); });
        if (s.delay == Delay::output) memcpy(buffers.parameters, made(n - 1), s.parameters() * sizeof(float));
    }
}

}  // namespace

}  // namespace fastwave::FASTWAVE_ISA
