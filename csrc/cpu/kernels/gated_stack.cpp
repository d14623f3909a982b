// gated_stack on the CPU, depth-first: a chunk of columns goes through all layers before the next chunk is read, and
// each layer keeps its input's last (k - 1) d columns in a ring, so that activations stay in the caches and nothing is
// computed twice. Inside, time is the slow axis: a column's channels are contiguous.
//
// A centred layer needs (k - 1) d / 2 columns to come, so it runs that far behind the layer before it: after columns
// [start, start + chunk) of x, a stage that stands `lag` columns behind makes [start - lag, start - lag + chunk).
// Columns before the utterance and from `length` on are zeros to every layer.
//
// Time 0 is the first column of this call. What earlier calls read and could not make yet, columns [-pending, 0), comes
// out of the state: the input, each layer's last (k - 1) d columns, and the skip sums that are not whole.
#include <string.h>

#include "cpu/stack.h"

namespace fastwave::FASTWAVE_ISA {

namespace {

constexpr int64_t many_words = 128 * 1024;  // of a layer's weights, for threads to share its rows
constexpr int64_t deep = 1024;  // words of c that are multiplied at once: two panels and a chunk of them fit a cache

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

// `zeros`, `z_words`, the ring `cond` and the rings v hold what products read, in words of T.
template <class T>
struct Buffers {
    float *zeros, *window, *bias, *column, *cond_columns, *projected, *depthwise, *z, *z_words, *head_a, *head_b;
    float* parameters;
    Ring skip, cond;
    float* rings;      // per layer: h, then v, which is h + u, rounded where a product reads it
    int64_t v_stride;  // of a ring v: floats where a depthwise convolution reads it

    Buffers(Arena& arena, const StackShape& s) {
        const int64_t rows = s.gate_rows();
        const int64_t behind = s.look_ahead();
        v_stride = s.separable ? padded(s.residual) : T::column_words(s.residual);
        zeros = arena.take(v_stride > rows ? v_stride : rows);
        column = arena.take(max_team * padded(s.residual));
        cond_columns = arena.take(s.cond_channels ? max_team * turned * turning(s.cond_channels) : 0);
        window = arena.take((chunk + max_team * s.front_width) * s.in_channels);
        bias = arena.take(s.layers * rows);
        const int64_t cond_columns = s.cond_channels == 0 ? 0 : (chunk + behind) / s.cond_repeat + s.cond_taps + 2;
        const int64_t cond_words = apart(T::column_words(s.cond_channels));
        cond = {arena.take(cond_columns * cond_words), cond_columns, cond_words};
        projected = arena.take(s.cond_channels == 0 ? 0 : (chunk / s.cond_repeat + 2 + max_team * s.cond_taps) * rows);
        depthwise = arena.take(s.separable ? chunk * (padded(s.residual) + T::column_words(s.residual)) : 0);
        z = arena.take(chunk * padded(s.gate));
        z_words = arena.take(T::same_as_float ? 0 : chunk * T::column_words(s.gate));
        skip = {arena.take(s.skip ? (chunk + behind) * padded(s.skip) : 0), chunk + behind, padded(s.skip)};
        head_a = arena.take(chunk * s.widest_head());
        head_b = arena.take(chunk * s.widest_head());
        parameters = arena.take(s.parameters());
        rings = arena.take(0);
        for (int64_t layer = 0; layer <= s.layers; ++layer) arena.take(capacity(s, layer) * ring_stride(s));
    }

    Ring h(const StackShape& s, int64_t layer) const {
        return {ring(s, layer), capacity(s, layer), padded(s.residual)};
    }
    Ring v(const StackShape& s, int64_t layer) const {
        float* data = ring(s, layer) + capacity(s, layer) * padded(s.residual);
        return {data, capacity(s, layer), v_stride};
    }

private:
    static int64_t capacity(const StackShape& s, int64_t layer) {
        return chunk + (layer < s.layers ? s.reach(layer) : 0);
    }
    int64_t ring_stride(const StackShape& s) const { return padded(s.residual) + v_stride; }
    float* ring(const StackShape& s, int64_t layer) const {
        float* data = rings;
        for (int64_t l = 0; l < layer; ++l) data += padded(capacity(s, l) * ring_stride(s));
        return data;
    }
};

// One thread's share of a chunk: columns [first, first + n), the first of which is the chunk's column `offset`.
struct Columns {
    int64_t first, n, offset, part;
};

template <class T>
struct Stack {
    const GatedStackParams& p;
    const StackShape& s;
    const Buffers<T>& buffers;
    // Where v is not h, a causal stack needs of h only the chunk at hand: one buffer, updated in place.
    const bool apart = p.u || !(T::same_as_float || s.separable);
    // Before this column there are zeros. A state that holds all it can has them in itself.
    const int64_t begin = p.state && p.pending == s.look_ahead() ? -(int64_t{1} << 62) : -p.pending;
    const int64_t margin = s.cond_taps / 2;  // columns of c on either side of the one that a column stands at

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

    void run();

private:
    // What the head made of a column of the chunk.
    const float* made(int64_t offset) const {
        return (s.heads % 2 ? buffers.head_b : buffers.head_a) + offset * s.widest_head();
    }
    int64_t load_conditioning(int64_t from, int64_t to);
    template <class Run>
    void by_columns(int64_t first, int64_t n, const Run& run);
    void front(const StackWeights& w, Columns columns, const Ring& h);
    void layer(const LayerWeights& w, int64_t index, int64_t first, int64_t n, const Ring* h, const Ring* v);
    void filter(const LayerWeights& w, int64_t index, Columns columns, const Ring& v);
    void gates(const LayerWeights& w, int64_t index, Columns columns, Panels panels, const Ring& v);
    void round_gates(Columns columns);
    void products(const LayerWeights& w, int64_t index, Columns columns, Panels panels, const Ring* h);
    void taps(const float** out, int64_t index, Columns columns, int64_t tap, const Ring& v) const;
    float* filtered(int64_t place) const;
    void round(int64_t index, Columns columns, const Ring* h, const Ring* v);
    void hold(float* to, const float* from) const;
    void head(const StackWeights& heads, Columns columns, const Ring& last);
    void write(Columns columns);
    void restore(const Ring* h, const Ring* v);
    void save(const Ring* h, const Ring* v);
    template <class Past, class Present, class Skip>
    float* walk_state(float* at, int64_t now, const Past& past, const Present& present, const Skip& skip);
};

// Threads share the columns [first, first + n).
template <class T>
template <class Run>
void Stack<T>::by_columns(int64_t first, int64_t n, const Run& run) {
    split(p.team, [&](int64_t i, int64_t parts) {
        const int64_t from = n * i / parts, to = n * (i + 1) / parts;
        if (from < to) run(Columns{first + from, to - from, from, i});
    });
}

// Transposes the raw conditioning columns with keys below cond_key(to - 1) + 1 + margin into their ring.
template <class T>
int64_t Stack<T>::load_conditioning(int64_t from, int64_t to) {
    if (!p.c) return from;
    const int64_t end = cond_key(to - 1) + 1 + margin;
    if (end <= from) return from;
    by_columns(from, end - from, [&](Columns keys) {
        load_columns<T>([&](int64_t i) { return buffers.cond.at(keys.first + i); },
                        buffers.cond_columns + keys.part * turned * turning(s.cond_channels),
                        p.c + cond_place(keys.first), s.cond_channels, p.cond_time, keys.n, p.reverse ? -1 : 1);
    });
    return end;
}

template <class T>
void Stack<T>::front(const StackWeights& w, Columns columns, const Ring& h) {
    // window: inputs [first - left, first + n + right) time-major; a column's taps are contiguous in it
    const int64_t in = s.in_channels, delay = s.delay == Delay::input, n = columns.n;
    const int64_t left = s.front_width - 1 - s.lag_front(), history = s.front_history();
    float* window = buffers.window + (columns.offset + columns.part * s.front_width) * in;
    for (int64_t ch = 0; ch < in; ++ch)
        for (int64_t i = 0; i < n + s.front_width - 1; ++i) {
            const int64_t t = columns.first - left - delay + i;
            window[i * in + ch] = t >= p.length              ? 0.f
                                  : t >= 0                   ? p.x[ch * p.time + place(t)]
                                  : p.state && t >= -history ? p.state[(t + history) * in + ch]
                                                             : 0.f;
        }
    const float* x[chunk];
    const float* init[chunk];
    float* out[chunk];
    for (int64_t i = 0; i < n; ++i) x[i] = window + i * in;
    for (int64_t i = 0; i < n; ++i) init[i] = w.front_bias;
    h.columns(out, columns.first, n);
    const Segment segment = {w.front, in * s.front_width, x};
    product<Float32>({0, padded(s.residual) / panel}, n, &segment, 1, init, StorePlain{out, s.front_relu});
}

// A column as a ring v holds it.
template <class T>
void Stack<T>::hold(float* to, const float* from) const {
    if (s.separable)
        memcpy(to, from, padded(s.residual) * sizeof(float));
    else
        T::round(to, from, s.residual);
}

// What layer `index` convolves: h + u, rounded.
template <class T>
void Stack<T>::round(int64_t index, Columns columns, const Ring* h, const Ring* v) {
    if (!apart || index == s.layers) return;
    float* sum = buffers.column + columns.part * padded(s.residual);
    const float* from[chunk];
    float* to[chunk];
    h[index].columns(from, columns.first, columns.n);
    v[index].columns(to, columns.first, columns.n);
    for (int64_t t = 0; t < columns.n; ++t) {
        if (p.u) {
            for (int64_t i = 0; i < s.residual; ++i) sum[i] = from[t][i] + p.u[index * s.residual + i];
            from[t] = sum;
        }
        hold(to[t], from[t]);
    }
}

// Pointers to what tap `tap` of layer `index` reads.
template <class T>
void Stack<T>::taps(const float** out, int64_t index, Columns columns, int64_t tap, const Ring& v) const {
    const int64_t t = columns.first - s.reach(index) + s.lag(index) + tap * s.dilations[index];
    v.columns(out, t, columns.n);
    for (int64_t i = 0; i < columns.n; ++i)
        if (t + i >= p.length || t + i < begin) out[i] = buffers.zeros;
}

// Where a depthwise convolution's result stands, in float32, and in words of T padded(residual) floats behind it.
template <class T>
float* Stack<T>::filtered(int64_t place) const {
    return buffers.depthwise + place * (padded(s.residual) + T::column_words(s.residual));
}

// The depthwise convolution of a separable layer, oldest tap first, rounded.
template <class T>
void Stack<T>::filter(const LayerWeights& w, int64_t index, Columns columns, const Ring& v) {
    if (!s.separable) return;
    const int64_t channels = padded(s.residual);
    const float* from[max_taps][chunk];
    for (int64_t j = 0; j < s.kernel_size; ++j) taps(from[j], index, columns, j, v);
    for (int64_t i = 0; i < columns.n; ++i) {
        float* sum = filtered(columns.offset + i);
        for (int64_t at = 0; at < channels; at += width) {
            vec value = load(w.depthwise + at);
            for (int64_t j = 0; j < s.kernel_size; ++j)
                value = fma(load(w.depthwise + (1 + j) * channels + at), load(from[j][i] + at), value);
            store(sum + at, value);
        }
        as_words<T>(sum + channels, sum, s.residual);
    }
}

// z of layer `index` for some columns, and of it the channels of some panels.
template <class T>
void Stack<T>::gates(const LayerWeights& w, int64_t index, Columns columns, Panels panels, const Ring& v) {
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
            init[i] = p.projected + index * (rows / panel) * p.panel_stride + cond_place(cond_key(first + i)) * panel;
        start.panel_stride = p.panel_stride;
    } else if (p.c && s.cond_repeat == 1 && !margin) {
        buffers.cond.columns(cond, first, n);
        Segment segment = {w.cond, s.cond_channels, cond};
        const int64_t words = T::integer ? 0 : depth_words(T::dtype, s.cond_channels);
        for (segment.end = deep; segment.end < words; segment.begin = segment.end, segment.end += deep) {
            float* sums[chunk];
            for (int64_t i = 0; i < n; ++i) sums[i] = buffers.projected + (columns.offset + i) * rows;
            product<T>(panels, n, &segment, 1, init, StorePlain{sums, false});
            for (int64_t i = 0; i < n; ++i) init[i] = sums[i];
        }
        segment.end = INT64_MAX;
        segments[count++] = segment;
    } else if (p.c) {
        const int64_t key = cond_key(first) - margin, keys = cond_key(first + n - 1) + margin - key + 1;
        // two threads may want one column of c: each makes its own
        const int64_t place = key + margin - cond_key(first - columns.offset) + columns.part * s.cond_taps;
        float* projected[chunk + max_taps];
        const float* from[chunk + max_taps];
        for (int64_t i = 0; i < keys; ++i) {
            projected[i] = buffers.projected + (place + i) * rows;
            cond[i] = buffers.cond.at(key + i);
            from[i] = margin ? buffers.zeros : bias;
        }
        const Segment segment = {w.cond, s.cond_channels, cond};
        product<T>(panels, keys, &segment, 1, from, StorePlain{projected, false});
        for (int64_t i = 0; i < n; ++i) {
            frames[i] = projected[cond_key(first + i) - margin - key];
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
        segments[count++] = {w.taps, s.residual, x[0]};
    } else {
        for (int64_t j = 0; j < s.kernel_size; ++j) {
            taps(x[j], index, columns, j, v);
            segments[count++] = {w.taps + j * matrix_words(T::dtype, rows, s.residual), s.residual, x[j]};
        }
    }
    float* z[chunk];
    for (int64_t i = 0; i < n; ++i) z[i] = buffers.z + (columns.offset + i) * padded(s.gate);
    product<T>(panels, n, segments, count, start, StoreGated{z});
}

template <class T>
void Stack<T>::round_gates(Columns columns) {
    for (int64_t i = columns.offset; i < columns.offset + columns.n; ++i)
        as_words<T>(buffers.z_words + i * T::column_words(s.gate), buffers.z + i * padded(s.gate), s.gate);
}

// Some panels of residual and skip.
template <class T>
void Stack<T>::products(const LayerWeights& w, int64_t index, Columns columns, Panels panels, const Ring* h) {
    const int64_t first = columns.first, n = columns.n;
    const float* h_now[chunk];
    float* h_next[chunk];
    float* skip[chunk];
    h[index].columns(h_now, first, n);
    h[index + 1].columns(h_next, first, n);
    if (s.skip) buffers.skip.columns(skip, first, n);
    const float *x[chunk], *init[chunk];
    for (int64_t i = 0; i < n; ++i) {
        const int64_t place = columns.offset + i;
        init[i] = w.product_bias;
        x[i] =
            T::same_as_float ? buffers.z + place * padded(s.gate) : buffers.z_words + place * T::column_words(s.gate);
    }
    const Segment segment = {w.product, s.gate, x};
    const int64_t residual_panels = s.has_residual(index) ? padded(s.residual) / panel : 0;
    product<T>(panels, n, &segment, 1, init,
               StoreResidualSkip{residual_panels, h_now, h_next, skip, s.residual_scale, index == 0});
}

// Layer `index` for n columns: reads its own rings, writes into the next layer's. Threads share the columns, and meet
// once; or, where the weights would fill a core's cache and more, each takes its own rows of them for all columns.
template <class T>
void Stack<T>::layer(const LayerWeights& w, int64_t index, int64_t first, int64_t n, const Ring* h, const Ring* v) {
    const Panels all_gates = {0, s.gate_rows() / panel}, all_products = {0, s.product_rows(index) / panel};
    const int64_t words = (s.separable ? 1 : s.kernel_size) * matrix_words(T::dtype, s.gate_rows(), s.residual) +
                          (p.c ? matrix_words(T::dtype, s.gate_rows(), s.cond_channels) : 0) +
                          matrix_words(T::dtype, s.product_rows(index), s.gate);
    const Columns all = {first, n, 0, 0};
    if (words < many_words)
        return by_columns(first, n, [&](Columns columns) {
            filter(w, index, columns, v[index]);
            gates(w, index, columns, all_gates, v[index]);
            if (!T::same_as_float) round_gates(columns);
            products(w, index, columns, all_products, h);
            round(index + 1, columns, h, v);
        });
    if (s.separable) by_columns(first, n, [&](Columns columns) { filter(w, index, columns, v[index]); });
    split(p.team,
          [&](int64_t i, int64_t parts) { gates(w, index, all, panels_of(all_gates.end, 2, i, parts), v[index]); });
    if (!T::same_as_float) by_columns(first, n, [&](Columns columns) { round_gates(columns); });
    split(p.team,
          [&](int64_t i, int64_t parts) { products(w, index, all, panels_of(all_products.end, 1, i, parts), h); });
    if (apart) by_columns(first, n, [&](Columns columns) { round(index + 1, columns, h, v); });
}

template <class T>
void Stack<T>::head(const StackWeights& heads, Columns columns, const Ring& last) {
    const int64_t stride = s.widest_head();
    const float* from[chunk];
    const float* init[chunk];
    float *in[chunk], *out[chunk];
    (s.skip ? buffers.skip : last).columns(from, columns.first, columns.n);
    for (int64_t i = 0; i < columns.n; ++i) {
        in[i] = buffers.head_a + (columns.offset + i) * stride;
        out[i] = buffers.head_b + (columns.offset + i) * stride;
    }
    run_heads(s, heads, columns.n, from, in, out, init);
}

// The epilogue, and back to time-contiguous memory. Sample t takes the parameters of column t, or of column t - 1
// with a delayed output, the first of which waited in `buffers.parameters`.
template <class T>
void Stack<T>::write(Columns columns) {
    const int64_t channels = s.out_channels();
    const float* y = p.y ? p.y : p.x;
    const float* parameters[chunk];
    for (int64_t i = 0; i < columns.n; ++i) {
        const int64_t column = columns.offset + i - (s.delay == Delay::output);
        parameters[i] = column < 0 ? buffers.parameters : made(column);
    }
    for (int64_t ch = 0; ch < channels; ++ch)
        for (int64_t i = 0; i < columns.n; ++i) {
            const int64_t at = ch * p.out_time + place(columns.first + i) + p.pending;
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

template <class T>
void Stack<T>::run() {
    StackWeights weights(p.weights, s);
    memset(buffers.zeros, 0, (buffers.v_stride > s.gate_rows() ? buffers.v_stride : s.gate_rows()) * sizeof(float));

    Ring h[max_layers + 1], v[max_layers + 1];
    LayerWeights layers[max_layers];
    for (int64_t l = 0; l <= s.layers; ++l) {
        h[l] = buffers.h(s, apart && s.causal ? 0 : l);
        v[l] = apart ? buffers.v(s, l) : h[l];
    }
    for (int64_t l = 0; l < s.layers; ++l) layers[l] = weights.layer(s, l);
    load_bias(buffers.bias, s, layers, p.g);

    restore(h, v);

    int64_t cond_loaded = cond_key(-p.pending) - margin;
    const int64_t behind = s.look_ahead();
    for (int64_t start = 0; start < (p.last ? p.length + behind : p.time); start += chunk) {
        if (p.poll && p.poll(p.poll_context)) return;
        // columns [first, first + n) of a stage that runs `lag` columns behind the input
        auto span = [&](int64_t lag, int64_t& first) {
            const int64_t done = lag < p.pending ? -lag : -p.pending;
            first = start - lag > done ? start - lag : done;
            int64_t end = start + chunk - lag;
            if (!p.last && end > p.time - lag) end = p.time - lag;
            return (end < p.length ? end : p.length) - first;
        };
        int64_t first, lag = s.lag_front(), n = span(lag, first);
        if (n > 0) {
            by_columns(first, n, [&](Columns columns) {
                front(weights, columns, h[0]);
                round(0, columns, h, v);
            });
        }
        const int64_t ready = start + chunk - lag;
        cond_loaded = load_conditioning(cond_loaded, ready < p.length ? ready : p.length);
        for (int64_t l = 0; l < s.layers; ++l) {
            lag += s.lag(l);
            n = span(lag, first);
            if (n > 0) layer(layers[l], l, first, n, h, v);
        }
        if (n > 0) {
            by_columns(first, n, [&](Columns columns) { head(weights, columns, h[s.layers]); });
            by_columns(first, n, [&](Columns columns) { write(columns); });
            if (s.delay == Delay::output) memcpy(buffers.parameters, made(n - 1), s.parameters() * sizeof(float));
        }
    }

    const int64_t made = p.pending + p.length > 0 ? p.pending + p.length : 0;
    for (int64_t ch = 0; ch < s.out_channels() && made < p.out_time; ++ch)
        memset(p.out + ch * p.out_time + made, 0, (p.out_time - made) * sizeof(float));
    if (p.state) save(h, v);
}

// Every column that the state holds of layers and of the skip sum, where `now` columns of x have been read. A layer has
// made its output up to now - lag: of what lies before it needs v, and from there on h, which makes v.
template <class T>
template <class Past, class Present, class Skip>
float* Stack<T>::walk_state(float* at, int64_t now, const Past& past, const Present& present, const Skip& skip) {
    int64_t lag = s.lag_front();
    for (int64_t l = 0; l < s.layers; ++l) {
        int64_t t = now - lag - s.reach(l);
        lag += s.lag(l);
        for (; t < now - lag; ++t, at += s.residual) past(at, l, t);
        for (; t < now - lag + s.lag(l); ++t, at += s.residual) present(at, l, t);
    }
    if (s.skip)
        for (int64_t t = now - lag; t < now - lag + s.pending_skip(); ++t, at += s.skip) skip(at, t);
    return at;
}

// The columns before the first.
template <class T>
void Stack<T>::restore(const Ring* h, const Ring* v) {
    memset(buffers.column, 0, max_team * padded(s.residual) * sizeof(float));
    float* saved = p.state ? p.state + s.front_history() * s.in_channels : nullptr;
    if (saved)
        saved = walk_state(
            saved, 0,
            [&](const float* column, int64_t l, int64_t t) {
                memcpy(buffers.column, column, s.residual * sizeof(float));
                hold(v[l].at(t), buffers.column);
            },
            [&](const float* column, int64_t l, int64_t t) {
                memset(h[l].at(t), 0, padded(s.residual) * sizeof(float));
                memcpy(h[l].at(t), column, s.residual * sizeof(float));
                round(l, {t, 1, 0, 0}, h, v);
            },
            [&](const float* column, int64_t t) { memcpy(buffers.skip.at(t), column, s.skip * sizeof(float)); });
    if (s.delay == Delay::output) {
        if (saved) {
            memcpy(buffers.parameters, saved, s.parameters() * sizeof(float));
        } else {
            for (int64_t i = 0; i < s.parameters(); ++i) {
                const bool log_sigma = (i >= s.out_channels()) == s.mu_first;
                const float infinity = __builtin_inff();
                buffers.parameters[i] = !log_sigma ? 0.f : s.epilogue == Epilogue::affine ? -infinity : infinity;
            }
        }
    }
}

// The last columns of everything that the next call's first columns read. A row's state is that after its last valid
// column; but a stack that looks ahead goes on, with zeros, since there is more to make.
template <class T>
void Stack<T>::save(const Ring* h, const Ring* v) {
    const int64_t in = s.in_channels, history = s.front_history(), now = s.look_ahead() == 0 ? p.length : p.time;
    if (now < history) memmove(p.state, p.state + now * in, (history - now) * in * sizeof(float));
    for (int64_t t = now > history ? now - history : 0; t < now; ++t)
        for (int64_t ch = 0; ch < in; ++ch)
            p.state[(t - now + history) * in + ch] = t < p.length ? p.x[ch * p.time + place(t)] : 0.f;
    auto copy = [&](float* column, int64_t t, const float* from, int64_t channels) {
        if (t >= begin && t < p.length)
            memcpy(column, from, channels * sizeof(float));
        else
            memset(column, 0, channels * sizeof(float));
    };
    float* end = walk_state(
        p.state + history * in, now,
        [&](float* column, int64_t l, int64_t t) {
            if (s.separable || t < begin || t >= p.length)
                copy(column, t, v[l].at(t), s.residual);
            else
                T::widen(column, v[l].at(t), s.residual);
        },
        [&](float* column, int64_t l, int64_t t) { copy(column, t, h[l].at(t), s.residual); },
        [&](float* column, int64_t t) { copy(column, t, buffers.skip.at(t), s.skip); });
    if (s.delay == Delay::output) memcpy(end, buffers.parameters, s.parameters() * sizeof(float));
}

}  // namespace

int64_t gated_stack_workspace(const StackShape& shape) {
    return with_type(shape.dtype, [&](auto type) {
        Arena arena = {nullptr};
        const Buffers<decltype(type)> buffers(arena, shape);
        return arena.used;
    });
}

void gated_stack(const GatedStackParams& params) {
    with_type(params.shape.dtype, [&](auto type) {
        using T = decltype(type);
        Arena arena = {params.workspace};
        const Buffers<T> buffers(arena, params.shape);
        Stack<T>{params, params.shape, buffers}.run();
    });
}

}  // namespace fastwave::FASTWAVE_ISA
