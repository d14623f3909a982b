// wavenet_sample on the CPU: a group of rows in lockstep, one column of the stack per row and step, so that each weight
// is read once per step for the whole group.
//
// A tap that is `lag` samples old is known so many steps ahead, and is then made for several steps at once, as a matrix
// product over steps * rows columns: the bias, the conditioning and the taps at least `block` samples old at the start
// of each block of steps, younger ones every 2 or 4 steps. Only the current and the last sample wait for the step. The
// order of accumulation is gated_stack's: bias, conditioning, taps oldest first.
//
// A team runs the steps of a block together, each thread its panels of every product. Threads meet when the front's
// output is there, and twice a layer: when z is whole, and when h is. The first thread does what is not split.
#include <math.h>
#include <string.h>

#include "cpu/stack.h"
#include "heads.h"

namespace fastwave::FASTWAVE_ISA {

namespace {

constexpr int64_t block = 8;
constexpr int64_t max_columns = block * max_rows;

// Per row of the group unless said otherwise. What products read is in words of T: the rings, `cond`, and of each
// thread h_words and z_words.
template <class T>
struct Buffers {
    int64_t residual, gate_rows, window_size, head, h_stride, z_stride, cond_stride;
    float *window, *bias, *column, *cond, *projected, *ahead, *h, *h_words, *z, *z_words, *skip, *head_a, *head_b;
    float* rings;  // per layer: (capacity, rows, h_stride)

    Buffers(Arena& arena, const StackShape& s, int64_t rows) {
        residual = padded(s.residual);
        gate_rows = s.gate_rows();
        window_size = padded(s.front_width * s.in_channels);
        head = s.widest_head();
        h_stride = T::column_words(s.residual);
        z_stride = T::column_words(s.gate);
        cond_stride = T::column_words(s.cond_channels);
        window = arena.take(rows * window_size);
        bias = arena.take(rows * s.layers * gate_rows);
        const int64_t turning_columns = turned * turning(s.cond_channels);
        column = arena.take(turning_columns > s.residual ? turning_columns : s.residual);
        cond = arena.take(block * rows * cond_stride);
        projected = arena.take(s.cond_channels == 0 ? 0 : s.layers * block * rows * gate_rows);
        ahead = arena.take(s.layers * block * rows * gate_rows);
        h = arena.take(2 * rows * residual);
        z = arena.take(rows * padded(s.gate));
        h_words = arena.take(T::same_as_float ? 0 : max_team * rows * h_stride);
        z_words = arena.take(T::same_as_float ? 0 : max_team * rows * z_stride);
        skip = arena.take(rows * padded(s.skip ? s.skip : s.residual));
        head_a = arena.take(rows * head);
        head_b = arena.take(rows * head);
        rings = arena.take(0);
        for (int64_t l = 0; l < s.layers; ++l) arena.take(capacity(s, l) * rows * h_stride);
    }

    static int64_t capacity(const StackShape& s, int64_t layer) { return s.reach(layer) + block; }
};

template <class T>
struct Sampler {
    const WaveNetSampleParams& p;
    const StackShape& s;
    const Buffers<T>& b;
    LayerWeights layers[max_layers];
    float* rings[max_layers];
    int64_t at[max_layers];  // the place of step `now` in each ring
    int64_t now = 0;

    Sampler(const WaveNetSampleParams& params, const Buffers<T>& buffers)
        : p(params), s(params.shape), b(buffers), weights_(params.weights, params.shape) {
        float* ring = b.rings;
        for (int64_t l = 0; l < s.layers; ++l) {
            layers[l] = weights_.layer(s, l);
            rings[l] = ring;
            at[l] = 0;
            ring += b.capacity(s, l) * p.rows * b.h_stride;
        }
    }

    void run();

private:
    int64_t length(int64_t row) const { return p.lengths ? p.lengths[row] : p.time; }

    // Row `row`'s input of layer l at time t, from now - reach(l) to the end of the block.
    float* ring(int64_t l, int64_t t, int64_t row) const {
        const int64_t capacity = b.capacity(s, l);
        int64_t place = at[l] + t - now;
        if (place < 0) place += capacity;
        if (place >= capacity) place -= capacity;
        return rings[l] + (place * p.rows + row) * b.h_stride;
    }

    float* ahead(int64_t l, int64_t step, int64_t row) const {
        return b.ahead + ((l * block + step) * p.rows + row) * b.gate_rows;
    }

    int64_t lag(int64_t l, int64_t tap) const { return (s.kernel_size - 1 - tap) * s.dilations[l]; }

    // For how many steps at once a tap is made: a power of two, no more than its lag or a block.
    static int64_t lead(int64_t lag) { return lag >= block ? block : lag >= 4 ? 4 : lag >= 2 ? 2 : 1; }

    void load(int64_t row);
    void save(int64_t row, int64_t t);
    void condition(int64_t start, int64_t steps);
    void look_ahead(int64_t start, int64_t steps);
    void look_ahead(int64_t l, int64_t start, int64_t steps);
    void add_tap(int64_t l, int64_t tap, int64_t start, int64_t t, int64_t steps, Panels panels);
    void front();
    void run_layers(int64_t start, int64_t t, int64_t end, int64_t part, int64_t parts);
    void finish(int64_t t);
    void emit(int64_t row, int64_t t, const float* parameters);

    StackWeights weights_;  // behind the layers: the heads
    int64_t cond_key_ = -1, cond_keys_ = 0;
};

template <class T>
void Sampler<T>::load(int64_t row) {
    const float* state = p.state + row * p.state_size;
    const int64_t inputs = s.front_width * s.in_channels;
    memcpy(b.window + row * b.window_size, state, inputs * sizeof(float));
    state += inputs;
    memset(b.column, 0, b.residual * sizeof(float));
    for (int64_t l = 0; l < s.layers; ++l)
        for (int64_t t = -s.reach(l); t < 0; ++t, state += s.residual) {
            memcpy(b.column, state, s.residual * sizeof(float));
            T::round(ring(l, t, row), b.column, s.residual);
        }
    load_bias(b.bias + row * s.layers * b.gate_rows, s, layers, p.g ? p.g + row * s.layers * 2 * s.gate : nullptr);
}

template <class T>
void Sampler<T>::save(int64_t row, int64_t t) {
    float* state = p.state + row * p.state_size;
    const int64_t inputs = s.front_width * s.in_channels;
    memcpy(state, b.window + row * b.window_size, inputs * sizeof(float));
    state += inputs;
    for (int64_t l = 0; l < s.layers; ++l)
        for (int64_t i = t - s.reach(l); i < t; ++i, state += s.residual) T::widen(state, ring(l, i, row), s.residual);
}

// The columns of c that steps [start, start + steps) read, b.cond[key][row]; where each of them stands for many
// samples, also bias and conditioning of every layer, projected[l][key][row], which outlive a block.
template <class T>
void Sampler<T>::condition(int64_t start, int64_t steps) {
    const int64_t key = start / s.cond_repeat, keys = (start + steps - 1) / s.cond_repeat - key + 1;
    if (key == cond_key_ && keys == cond_keys_) return;
    cond_key_ = key;
    cond_keys_ = keys;
    const float* column[max_columns];
    for (int64_t row = 0; row < p.rows; ++row) {
        const float* from = p.c + row * s.cond_channels * p.cond_time + key;
        auto to = [&](int64_t i) { return b.cond + (i * p.rows + row) * b.cond_stride; };
        load_columns<T>(to, b.column, from, s.cond_channels, p.cond_time, keys);
        for (int64_t i = 0; i < keys; ++i) column[i * p.rows + row] = to(i);
    }
    if (s.cond_repeat == 1) return;
    auto layer = [&](int64_t l) {
        const float* init[max_columns];
        float* out[max_columns];
        for (int64_t i = 0; i < keys * p.rows; ++i) {
            const int64_t row = i % p.rows;
            init[i] = b.bias + (row * s.layers + l) * b.gate_rows;
            out[i] = b.projected + (l * block * p.rows + i) * b.gate_rows;
        }
        const Segment segment = {layers[l].cond, s.cond_channels, column};
        product<T>({0, b.gate_rows / panel}, keys * p.rows, &segment, 1, init, StorePlain{out, false});
    };
    split(p.team, [&](int64_t i, int64_t parts) {
        for (int64_t l = i; l < s.layers; l += parts) layer(l);
    });
}

// What is known of the pre-activations of a block before its first step.
template <class T>
void Sampler<T>::look_ahead(int64_t start, int64_t steps) {
    if (s.cond_channels) condition(start, steps);
    split(p.team, [&](int64_t i, int64_t parts) {
        for (int64_t l = i; l < s.layers; l += parts) look_ahead(l, start, steps);
    });
}

template <class T>
void Sampler<T>::look_ahead(int64_t l, int64_t start, int64_t steps) {
    const bool fused = s.cond_channels && s.cond_repeat == 1;
    const bool projected = s.cond_channels && !fused;
    const int64_t tap_words = matrix_words(T::dtype, b.gate_rows, s.residual), columns = steps * p.rows;
    const float* init[max_columns];
    float* out[max_columns];
    const float* x[max_taps + 1][max_columns];
    Segment segments[max_taps + 1];
    int count = 0;
    for (int64_t i = 0; i < columns; ++i) {
        const int64_t t = start + i / p.rows, row = i % p.rows, key = t / s.cond_repeat - cond_key_;
        init[i] = projected ? b.projected + ((l * block + key) * p.rows + row) * b.gate_rows
                            : b.bias + (row * s.layers + l) * b.gate_rows;
        out[i] = ahead(l, t - start, row);
    }
    if (fused) {
        for (int64_t i = 0; i < columns; ++i) x[count][i] = b.cond + i * b.cond_stride;
        segments[count] = {layers[l].cond, s.cond_channels, x[count]};
        ++count;
    }
    for (int64_t j = 0; j < s.kernel_size && lag(l, j) >= block; ++j) {
        for (int64_t i = 0; i < columns; ++i) x[count][i] = ring(l, start + i / p.rows - lag(l, j), i % p.rows);
        segments[count] = {layers[l].taps + j * tap_words, s.residual, x[count]};
        ++count;
    }
    product<T>({0, b.gate_rows / panel}, columns, segments, count, init, StorePlain{out, false});
}

// Adds one tap to some panels of what is known ahead of steps [t, t + steps).
template <class T>
void Sampler<T>::add_tap(int64_t l, int64_t tap, int64_t start, int64_t t, int64_t steps, Panels panels) {
    const float* x[max_columns];
    const float* init[max_columns];
    float* out[max_columns];
    for (int64_t i = 0; i < steps * p.rows; ++i) {
        x[i] = ring(l, t + i / p.rows - lag(l, tap), i % p.rows);
        init[i] = out[i] = ahead(l, t - start + i / p.rows, i % p.rows);
    }
    const int64_t tap_words = matrix_words(T::dtype, b.gate_rows, s.residual);
    const Segment segment = {layers[l].taps + tap * tap_words, s.residual, x};
    product<T>(panels, steps * p.rows, &segment, 1, init, StorePlain{out, false});
}

// out = bias + W x, behind an optional ReLU, for a matrix of `panels` panels and an x that is mostly zeros, one-hot
// say.
static void sparse_product(int64_t panels, const float* weight, const float* bias, int64_t depth, const float* x,
                           bool relu, float* out) {
    memcpy(out, bias, panels * panel * sizeof(float));
    for (int64_t k = 0; k < depth; ++k) {
        if (x[k] == 0.f) continue;
        for (int64_t p = 0; p < panels; ++p)
            for (int v = 0; v < vectors; ++v) {
                float* to = out + p * panel + v * width;
                store(to, fma(load(weight + (p * depth + k) * panel + v * width), splat(x[k]), load(to)));
            }
    }
    if (relu)
        for (int64_t i = 0; i < panels * panel; i += width) store(out + i, max(splat(0.f), load(out + i)));
}

template <class T>
void Sampler<T>::front() {
    const int64_t panels = b.residual / panel, depth = s.front_width * s.in_channels;
    const float *x[max_rows], *init[max_rows];
    float* h[max_rows];
    for (int64_t row = 0; row < p.rows; ++row) {
        x[row] = b.window + row * b.window_size;
        init[row] = weights_.front_bias;
        h[row] = b.h + row * b.residual;
        if (s.in_channels > 1)
            sparse_product(panels, weights_.front, weights_.front_bias, depth, x[row], s.front_relu, h[row]);
    }
    if (s.in_channels > 1) return;
    const Segment segment = {weights_.front, depth, x};
    product<Float32>({0, panels}, p.rows, &segment, 1, init, StorePlain{h, s.front_relu});
}

// One thread's part of the layers of step t.
template <class T>
void Sampler<T>::run_layers(int64_t start, int64_t t, int64_t end, int64_t part, int64_t parts) {
    const int64_t rows = p.rows, tap_words = matrix_words(T::dtype, b.gate_rows, s.residual);
    const Panels gate_panels = panels_of(b.gate_rows / panel, 2, part, parts);
    auto meet = [&] {
        if (parts > 1) p.team->meet(p.team, part);
    };
    const float *init[max_rows], *x[max_rows];
    float *h[max_rows], *next[max_rows], *z[max_rows], *skip[max_rows];
    for (int64_t row = 0; row < rows; ++row) {
        h[row] = b.h + row * b.residual;
        next[row] = b.h + (rows + row) * b.residual;
        z[row] = b.z + row * padded(s.gate);
        skip[row] = b.skip + row * padded(s.skip ? s.skip : s.residual);
    }
    for (int64_t l = 0; l < s.layers; ++l) {
        const LayerWeights& w = layers[l];
        const float* taps[2][max_rows];  // at most two are less than 2 samples old
        Segment segments[2];
        int count = 0;
        for (int64_t row = 0; row < rows; ++row) {
            init[row] = ahead(l, t - start, row);
            if (part == 0) T::round(ring(l, t, row), h[row], s.residual);
        }
        for (int64_t j = 0; j < s.kernel_size; ++j) {
            const int64_t n = lead(lag(l, j));
            if (1 < n && n < block && (t - start) % n == 0)
                add_tap(l, j, start, t, end - t < n ? end - t : n, gate_panels);
            if (n > 1) continue;
            for (int64_t row = 0; row < rows; ++row)
                taps[count][row] = lag(l, j) || part == 0
                                       ? ring(l, t - lag(l, j), row)
                                       : as_words<T>(b.h_words + (part * rows + row) * b.h_stride, h[row], s.residual);
            segments[count] = {w.taps + j * tap_words, s.residual, taps[count]};
            ++count;
        }
        product<T>(gate_panels, rows, segments, count, init, StoreGated{z});
        meet();

        for (int64_t row = 0; row < rows; ++row) {
            init[row] = w.product_bias;
            x[row] = as_words<T>(b.z_words + (part * rows + row) * b.z_stride, z[row], s.gate);
        }
        const Segment segment = {w.product, s.gate, x};
        const int64_t residual_panels = s.has_residual(l) ? b.residual / panel : 0;
        product<T>(panels_of(s.product_rows(l) / panel, 1, part, parts), rows, &segment, 1, init,
                   StoreResidualSkip{residual_panels, h, next, skip, s.residual_scale, l == 0});
        meet();
        if (s.has_residual(l))
            for (int64_t row = 0; row < rows; ++row) {
                float* swapped = h[row];
                h[row] = next[row];
                next[row] = swapped;
            }
    }
}

// Head and draw of step t, which then is over.
template <class T>
void Sampler<T>::finish(int64_t t) {
    const float *from[max_rows], *init[max_rows];
    float *in[max_rows], *out[max_rows];
    for (int64_t row = 0; row < p.rows; ++row) {
        const float* h =
            b.h + (s.layers % 2 * p.rows + row) * b.residual;  // without a skip, where the last layer left it
        from[row] = s.skip ? b.skip + row * padded(s.skip) : h;
        in[row] = b.head_a + row * b.head;
        out[row] = b.head_b + row * b.head;
    }
    run_heads(s, weights_, p.rows, from, in, out, init);
    for (int64_t row = 0; row < p.rows; ++row)
        if (t < length(row)) emit(row, t, (s.heads % 2 ? b.head_b : b.head_a) + row * b.head);
    for (int64_t l = 0; l < s.layers; ++l)
        if (++at[l] == b.capacity(s, l)) at[l] = 0;
    ++now;
    for (int64_t row = 0; row < p.rows; ++row)  // a row that ends here keeps its state while the others go on
        if (t + 1 == length(row)) save(row, t + 1);
}

// Draws the sample (or takes the forced one), and puts it behind the front's window.
template <class T>
void Sampler<T>::emit(int64_t row, int64_t t, const float* parameters) {
    const int64_t n = s.parameters();
    if (p.parameters)
        for (int64_t i = 0; i < n; ++i) p.parameters[(row * n + i) * p.time + t] = parameters[i];
    const float* noise = p.noise + row * p.noise_channels * p.time + t;
    Draw x = {0.f, 0};
    if (t < p.forced_time) {
        x.value = p.forced[row * p.forced_time + t];
        if (s.in_channels > 1)  // the class whose amplitude is nearest
            for (int64_t i = 1; i < n; ++i)
                if (fabsf(x.value - p.table[i]) < fabsf(x.value - p.table[x.index])) x.index = i;
    } else {
        x = draw(
            p.distribution, n, p.temperature, p.log_scale_min, p.clamp, p.table,
            [&](int64_t i) { return parameters[i]; }, [&](int64_t i) { return noise[i * p.time]; });
    }
    p.samples[row * p.time + t] = x.value;
    float* window = b.window + row * b.window_size;
    const int64_t kept = (s.front_width - 1) * s.in_channels;
    memmove(window, window + s.in_channels, kept * sizeof(float));
    if (s.in_channels == 1) {
        window[kept] = x.value;
    } else {
        memset(window + kept, 0, s.in_channels * sizeof(float));
        window[kept + x.index] = 1.f;
    }
}

template <class T>
void Sampler<T>::run() {
    int64_t longest = 0;
    for (int64_t row = 0; row < p.rows; ++row) {
        load(row);
        if (length(row) > longest) longest = length(row);
    }
    for (int64_t start = 0; start < longest; start += block) {
        if (p.poll && p.poll(p.poll_context)) return;
        const int64_t steps = longest - start < block ? longest - start : block;
        look_ahead(start, steps);
        together(p.team, [&](int64_t part, int64_t parts) {
            for (int64_t t = start; t < start + steps; ++t) {
                if (part == 0) front();
                if (parts > 1) p.team->meet(p.team, part);
                run_layers(start, t, start + steps, part, parts);
                if (part == 0) finish(t);
            }
        });
    }
}

}  // namespace

int64_t wavenet_sample_workspace(const StackShape& shape, int64_t rows) {
    return with_type(shape.dtype, [&](auto type) {
        Arena arena = {nullptr};
        const Buffers<decltype(type)> buffers(arena, shape, rows);
        return arena.used;
    });
}

void wavenet_sample(const WaveNetSampleParams& params) {
    with_type(params.shape.dtype, [&](auto type) {
        Arena arena = {params.workspace};
        const Buffers<decltype(type)> buffers(arena, params.shape, params.rows);
        Sampler<decltype(type)>(params, buffers).run();
    });
}

}  // namespace fastwave::FASTWAVE_ISA
