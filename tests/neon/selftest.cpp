// The CPU kernels against a plain scalar reference in double, without Python: for instruction sets that run in an
// emulator. tools/neon.sh builds and runs it, for arm64 and, to prove the test itself, for this machine.
//
// The bounds are those of tests/kernels.py: four times the error that the reference makes in float32, and where
// the stack's type rounds, a quarter of what that rounding is worth.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "cpu/threads.h"
#include "params.h"

using namespace fastwave;

namespace {

using Floats = std::vector<float>;

int failures = 0, checks = 0;

void check(bool passed, const std::string& what, double value = 0, double bound = 0) {
    ++checks;
    if (passed) return;
    ++failures;
    std::printf("FAILED %s %s: %g, bound %g\n", kernels().isa, what.c_str(), value, bound);
}

std::mt19937 generator(0);

Floats random(int64_t count, double scale = 1) {
    std::normal_distribution<double> normal(0, scale);
    Floats values(count);
    for (float& value : values) value = static_cast<float>(normal(generator));
    return values;
}

// ---- what a type rounds ---------------------------------------------------------------------------------------------

uint16_t bfloat16_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float from_bfloat16(uint16_t half) {
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof(x));
    return x;
}

template <class Real>
Real largest(const Real* x, int64_t count) {
    Real top = 1.17549435e-38f;
    for (int64_t i = 0; i < count; ++i) top = std::max(top, std::abs(x[i]));
    return top;
}

// An input of a product; int8 has one scale for the whole vector, a power of two.
template <class Real>
void round_vector(Real* x, int64_t count, Dtype dtype) {
    if (dtype == Dtype::bfloat16)
        for (int64_t i = 0; i < count; ++i) x[i] = from_bfloat16(bfloat16_bits(static_cast<float>(x[i])));
    if (dtype == Dtype::int8) {
        int exponent;
        const Real mantissa = std::frexp(largest(x, count) / Real(127.25), &exponent);
        const Real scale = std::ldexp(Real(1), exponent - (mantissa == Real(0.5)));
        for (int64_t i = 0; i < count; ++i) x[i] = std::nearbyint(x[i] / scale) * scale;
    }
}

// ---- weights, plain and packed --------------------------------------------------------------------------------------

struct Matrix {
    int64_t rows = 0, depth = 0;
    Floats bias, weights;         // (rows), (rows, depth)
    Floats scales;                // (rows), of int8
    std::vector<double> rounded;  // the weights as the stack's type holds them

    Matrix() = default;
    Matrix(int64_t rows, int64_t depth, Dtype dtype)
        : rows(rows),
          depth(depth),
          bias(random(rows, 0.2)),
          weights(random(rows * depth, 1 / std::sqrt(static_cast<double>(depth)))),
          rounded(weights.begin(), weights.end()) {
        for (int64_t row = 0; row < rows; ++row) scales.push_back(largest(&weights[row * depth], depth) / 127);
        for (int64_t k = 0; k < rows * depth; ++k) {
            if (dtype == Dtype::bfloat16) rounded[k] = from_bfloat16(bfloat16_bits(weights[k]));
            if (dtype == Dtype::int8) rounded[k] = static_cast<double>(quantized(k)) * scales[k / depth];
        }
    }

    // In float, for the packed weights and the reference's alike.
    int8_t quantized(int64_t k) const { return static_cast<int8_t>(std::nearbyint(weights[k] / scales[k / depth])); }
};

struct Layer {
    Matrix cond, residual, skip;
    std::vector<Matrix> taps;  // oldest first; the layer's bias is the last one's
};

struct Spec {
    std::string name;
    StackShape shape;
    std::vector<int64_t> dilations, head_channels, head_relu;
};

struct Weights {
    Matrix front;
    std::vector<Layer> layers;
    std::vector<Matrix> heads;

    explicit Weights(const StackShape& s) : front(s.residual, s.in_channels * s.front_width, Dtype::float32) {
        for (int64_t l = 0; l < s.layers; ++l) {
            Layer layer;
            if (s.cond_channels) layer.cond = Matrix(2 * s.gate, s.cond_channels, s.dtype);
            for (int64_t j = 0; j < s.kernel_size; ++j) layer.taps.emplace_back(2 * s.gate, s.residual, s.dtype);
            if (s.has_residual(l)) layer.residual = Matrix(s.residual, s.gate, s.dtype);
            if (s.skip) layer.skip = Matrix(s.skip, s.gate, s.dtype);
            layers.push_back(layer);
        }
        int64_t depth = s.skip ? s.skip : s.residual;
        for (int64_t i = 0; i < s.heads; ++i) {
            heads.emplace_back(s.head_channels[i], depth, Dtype::float32);
            depth = s.head_channels[i];
        }
    }

    Floats packed(const StackShape& s) const;
};

// The logical row that stands at place `at` of the packed rows, or -1 in the padding.
int64_t gate_row(int64_t at, int64_t gate) {
    const int64_t channel = at / (2 * panel) * panel + at % panel;
    return channel >= gate ? -1 : at / panel % 2 ? gate + channel : channel;
}

void pack_bias(Floats& out, const Floats& bias, bool gates) {
    const int64_t rows = bias.size(), places = gates ? 2 * padded(rows / 2) : padded(rows);
    for (int64_t at = 0; at < places; ++at) {
        const int64_t row = gates ? gate_row(at, rows / 2) : at < rows ? at : -1;
        out.push_back(row < 0 ? 0.f : bias[row]);
    }
}

void pack_matrix(Floats& out, const Matrix& m, bool gates, Dtype dtype) {
    const int64_t places = gates ? 2 * padded(m.rows / 2) : padded(m.rows);
    const int64_t words = depth_words(dtype, m.depth), per_word = dtype == Dtype::int8 ? 4 : 2;
    for (int64_t first = 0; first < places; first += panel) {
        Floats block(panel_words(dtype, m.depth), 0.f);
        for (int64_t i = 0; i < panel; ++i) {
            const int64_t row = gates ? gate_row(first + i, m.rows / 2) : first + i < m.rows ? first + i : -1;
            if (row < 0) continue;
            const float* from = m.weights.data() + row * m.depth;
            int32_t sum = 0;
            for (int64_t k = 0; k < m.depth; ++k) {
                if (dtype == Dtype::float32) {
                    block[k * panel + i] = from[k];
                    continue;
                }
                char* word = reinterpret_cast<char*>(&block[k / per_word * panel + i]);
                if (dtype == Dtype::bfloat16) {
                    const uint16_t half = bfloat16_bits(from[k]);
                    std::memcpy(word + k % 2 * 2, &half, 2);
                } else {
                    const int8_t q = m.quantized(row * m.depth + k);
                    std::memcpy(word + k % 4, &q, 1);
                    sum += q;
                }
            }
            if (dtype == Dtype::int8) {
                const int32_t offset = -128 * sum;
                block[words * panel + i] = m.scales[row];
                std::memcpy(&block[(words + 1) * panel + i], &offset, sizeof(offset));
            }
        }
        out.insert(out.end(), block.begin(), block.end());
    }
}

Floats Weights::packed(const StackShape& s) const {
    Floats out;
    pack_bias(out, front.bias, false);
    pack_matrix(out, front, false, Dtype::float32);
    for (const Layer& layer : layers) {
        pack_bias(out, layer.taps.back().bias, true);
        if (layer.cond.rows) pack_matrix(out, layer.cond, true, s.dtype);
        for (const Matrix& tap : layer.taps) pack_matrix(out, tap, true, s.dtype);
        for (const Matrix* m : {&layer.residual, &layer.skip}) pack_bias(out, m->bias, false);
        for (const Matrix* m : {&layer.residual, &layer.skip}) pack_matrix(out, *m, false, s.dtype);
    }
    for (const Matrix& head : heads) {
        pack_bias(out, head.bias, false);
        pack_matrix(out, head, false, Dtype::float32);
    }
    return out;
}

// ---- the reference --------------------------------------------------------------------------------------------------

struct Inputs {
    int64_t time = 0, cond_time = 0;
    Floats x, c, g, u;  // (in, time), (C, cond_time), (L, 2G), (L, R); g and u may be empty
};

// out += W x
template <class Real>
void multiply(std::vector<Real>& out, const Matrix& m, const Real* x, Dtype dtype) {
    for (int64_t row = 0; row < m.rows; ++row)
        for (int64_t k = row * m.depth, i = 0; i < m.depth; ++k, ++i)
            out[row] += (dtype == Dtype::float32 ? m.weights[k] : static_cast<Real>(m.rounded[k])) * x[i];
}

// The network's parameters, (n, time), by the equations of fastwave/ops/gated_stack.py; `delay`: column t reads x up to
// t - delay.
template <class Real>
std::vector<Real> reference(const StackShape& s, const Weights& w, const Inputs& in, Dtype dtype, int64_t delay) {
    using Column = std::vector<Real>;
    const int64_t time = in.time;
    std::vector<Column> h(time), v(time), skip(time, Column(s.skip, 0));
    const int64_t newest = s.front_causal ? 0 : s.front_width / 2;
    for (int64_t t = 0; t < time; ++t) {
        Column taps(s.in_channels * s.front_width, 0);
        for (int64_t j = 0; j < s.front_width; ++j)
            for (int64_t ch = 0; ch < s.in_channels; ++ch) {
                const int64_t at = t - delay - (s.front_width - 1 - j) + newest;
                if (0 <= at && at < time) taps[j * s.in_channels + ch] = in.x[ch * time + at];
            }
        h[t].assign(w.front.bias.begin(), w.front.bias.end());
        multiply(h[t], w.front, taps.data(), Dtype::float32);
        if (s.front_relu)
            for (Real& value : h[t]) value = value > 0 ? value : std::isnan(value) ? value : 0;
    }
    for (int64_t l = 0; l < s.layers; ++l) {
        const Layer& layer = w.layers[l];
        for (int64_t t = 0; t < time; ++t) {
            v[t] = h[t];
            for (int64_t i = 0; i < s.residual && !in.u.empty(); ++i) v[t][i] += in.u[l * s.residual + i];
            round_vector(v[t].data(), s.residual, dtype);
        }
        for (int64_t t = 0; t < time; ++t) {
            Column a(layer.taps.back().bias.begin(), layer.taps.back().bias.end());
            for (int64_t i = 0; i < 2 * s.gate && !in.g.empty(); ++i) a[i] += in.g[l * 2 * s.gate + i];
            const int64_t key = t / s.cond_repeat;
            if (s.cond_channels) {
                Column c(s.cond_channels);
                for (int64_t i = 0; i < s.cond_channels; ++i) c[i] = in.c[i * in.cond_time + key];
                round_vector(c.data(), s.cond_channels, dtype);
                multiply(a, layer.cond, c.data(), dtype);
            }
            for (int64_t j = 0; j < s.kernel_size; ++j) {
                const int64_t at = t - (s.kernel_size - 1 - j) * s.dilations[l] + (s.causal ? 0 : s.reach(l) / 2);
                if (0 <= at && at < time) multiply(a, layer.taps[j], v[at].data(), dtype);
            }
            Column z(s.gate);
            for (int64_t i = 0; i < s.gate; ++i) z[i] = std::tanh(a[i]) / (1 + std::exp(-a[s.gate + i]));
            round_vector(z.data(), s.gate, dtype);
            if (s.skip) {
                for (int64_t i = 0; i < s.skip; ++i) skip[t][i] += layer.skip.bias[i];
                multiply(skip[t], layer.skip, z.data(), dtype);
            }
            if (s.has_residual(l)) {
                for (int64_t i = 0; i < s.residual; ++i) h[t][i] += layer.residual.bias[i];
                multiply(h[t], layer.residual, z.data(), dtype);
                for (Real& value : h[t]) value *= s.residual_scale;
            }
        }
    }
    std::vector<Real> out(s.parameters() * time);
    for (int64_t t = 0; t < time; ++t) {
        Column column = s.skip ? skip[t] : h[t];
        for (int64_t i = 0; i < s.heads; ++i) {
            if (s.head_relu[i])
                for (Real& value : column) value = value > 0 ? value : std::isnan(value) ? value : 0;
            Column next(w.heads[i].bias.begin(), w.heads[i].bias.end());
            multiply(next, w.heads[i], column.data(), Dtype::float32);
            column = next;
        }
        for (int64_t i = 0; i < s.parameters(); ++i) out[i * time + t] = column[i];
    }
    return out;
}

template <class Value>
double error(const std::vector<Value>& value, const std::vector<double>& reference) {
    double off = 0, norm = 1e-60;
    for (size_t i = 0; i < reference.size(); ++i) {
        off += std::pow(value[i] - reference[i], 2);
        norm += std::pow(reference[i], 2);
    }
    return std::sqrt(off / norm);
}

// The references of several rows, one after the other.
template <class Real>
std::vector<Real> reference(const StackShape& s, const Weights& w, const std::vector<Inputs>& rows, Dtype dtype,
                            int64_t delay) {
    std::vector<Real> all;
    for (const Inputs& row : rows) {
        const std::vector<Real> one = reference<Real>(s, w, row, dtype, delay);
        all.insert(all.end(), one.begin(), one.end());
    }
    return all;
}

void check_close(const std::string& what, const Floats& value, const StackShape& s, const Weights& w,
                 const std::vector<Inputs>& rows, int64_t delay) {
    const std::vector<double> expected = reference<double>(s, w, rows, s.dtype, delay);
    double bound = std::ldexp(4.0, -24);
    if (s.dtype == Dtype::float32)
        bound = std::max(bound, 4 * error(reference<float>(s, w, rows, s.dtype, delay), expected));
    else
        bound = std::max(bound, error(expected, reference<double>(s, w, rows, Dtype::float32, delay)) / 4);
    const double off = error(value, expected);
    check(value.size() == expected.size() && off <= bound, what, off, bound);
}

// ---- the kernels ----------------------------------------------------------------------------------------------------

// A workspace of just the size asked for, full of NaNs: what the kernel reads, it has written.
Floats workspace(int64_t floats) { return Floats(floats, NAN); }

Inputs make_inputs(const StackShape& s, int64_t time, bool extras) {
    Inputs in;
    in.time = time;
    in.cond_time = (time + s.cond_repeat - 1) / s.cond_repeat;
    in.x = random(s.in_channels * time);
    in.c = random(s.cond_channels * in.cond_time);
    if (extras) {
        in.g = random(s.layers * 2 * s.gate);
        in.u = random(s.layers * s.residual);
    }
    return in;
}

// Columns [from, to) of (rows, time).
Floats cut(const Floats& x, int64_t time, int64_t from, int64_t to) {
    Floats out;
    for (size_t row = 0; time && row < x.size() / time; ++row)
        out.insert(out.end(), x.begin() + row * time + from, x.begin() + row * time + to);
    return out;
}

Floats run_stack(const StackShape& s, const Floats& packed, const Inputs& in, int64_t threads, float* state = nullptr) {
    Floats out(s.out_channels() * in.time, NAN), space = workspace(kernels().gated_stack_workspace(s, threads));
    GatedStackParams p{};
    p.shape = s;
    p.weights = packed.data();
    p.x = in.x.data();
    p.c = in.c.empty() ? nullptr : in.c.data();
    p.g = in.g.empty() ? nullptr : in.g.data();
    p.u = in.u.empty() ? nullptr : in.u.data();
    p.state = state;
    p.out = out.data();
    p.time = p.out_time = p.length = in.time;
    p.last = true;
    p.cond_time = in.cond_time, p.cond_group = 1;
    p.workspace = space.data();
    Helpers helpers(threads);
    p.team = threads > 1 ? &helpers : nullptr;
    kernels().gated_stack(p);
    return out;
}

// Compared together, so that the bounds hold whatever is drawn. The error of float32 on a few values may be small by
// chance. And where a type rounds, a value on the edge may fall either way, and all that depends on it then rounds
// otherwise too: in a single utterance that can be half of all that rounding is worth, but most have no such value.
constexpr int64_t utterances = 8;

void test_gated_stack(const std::string& name, const StackShape& s) {
    const Weights weights(s);
    const Floats packed = weights.packed(s);
    check(static_cast<int64_t>(packed.size()) == packed_size(s), "packed_size " + name);
    for (int64_t time : {1, 15, 16, 17, 110}) {
        const std::string what = "gated_stack " + name + ", " + std::to_string(time) + " columns";
        std::vector<Inputs> in;
        Floats out;
        for (int64_t row = 0; row < utterances; ++row) {
            in.push_back(make_inputs(s, time, time == 17));
            const Floats one = run_stack(s, packed, in[row], 1);
            check(run_stack(s, packed, in[row], 3) == one, what + " on 3 threads");
            out.insert(out.end(), one.begin(), one.end());
        }
        // of a few columns, those after such a value are too large a part
        if (s.dtype == Dtype::float32 || time > 100) check_close(what, out, s, weights, in, 0);
    }
    if (!s.causal || !s.front_causal) return;
    const int64_t time = 96, middle = 48;
    Inputs in = make_inputs(s, time, true);
    const Floats whole = run_stack(s, packed, in, 1);
    Floats state(s.state_size(), 0.f);
    for (int64_t from : {int64_t{0}, middle}) {
        Inputs piece = in;
        piece.time = middle;
        piece.cond_time = middle / s.cond_repeat;
        piece.x = cut(in.x, time, from, from + middle);
        piece.c = cut(in.c, in.cond_time, from / s.cond_repeat, (from + middle) / s.cond_repeat);
        check(run_stack(s, packed, piece, 1, state.data()) == cut(whole, time, from, from + middle),
              "gated_stack " + name + " in pieces");
    }
}

void test_nan(const std::string& name, const StackShape& s) {
    const Weights weights(s);
    Inputs in = make_inputs(s, 40, false);
    in.x[20] = NAN;
    const Floats out = run_stack(s, weights.packed(s), in, 1);
    const std::vector<float> expected = reference<float>(s, weights, in, s.dtype, 0);
    bool same = true;
    for (size_t i = 0; i < out.size(); ++i) same = same && std::isnan(out[i]) == std::isnan(expected[i]);
    check(same, "gated_stack " + name + ": a NaN comes out as one");
}

struct Expected {
    double value, size;  // of what is added up to the value
};

// What heads.h should draw from these parameters.
Expected expected_draw(Distribution distribution, const std::vector<double>& p, const std::vector<double>& noise,
                       const Floats& table) {
    const int64_t n = p.size();
    if (distribution == Distribution::softmax) {
        const double top = *std::max_element(p.begin(), p.end());
        double sum = 0, cumulative = 0;
        for (double logit : p) sum += std::exp(logit - top);
        int64_t index = 0;
        while (index < n - 1 && (cumulative += std::exp(p[index] - top)) <= sum * noise[0]) ++index;
        return {table[index], 1};
    }
    double mean = p[0], log_scale = p[1], standard = noise[0];
    if (distribution == Distribution::mixture_of_logistics) {
        const int64_t components = n / 3;
        int64_t best = 0;
        auto score = [&](int64_t i) { return p[i] - std::log(-std::log(noise[i])); };
        for (int64_t i = 1; i < components; ++i)
            if (score(i) > score(best)) best = i;
        mean = p[components + best];
        log_scale = p[2 * components + best];
        standard = std::log(noise[components] / (1 - noise[components]));
    }
    const double scale = std::exp(std::max(log_scale, -7.0));
    return {std::clamp(mean + scale * standard, -1.0, 1.0), std::abs(mean) + scale * (1 + std::abs(standard))};
}

struct Samples {
    Floats samples, parameters, state;
    bool operator==(const Samples&) const = default;
};

Samples run_sampler(const StackShape& s, const Floats& packed, Distribution distribution, const Floats& table,
                    const Floats& noise, const std::vector<Inputs>& in, const std::vector<int64_t>& lengths,
                    int64_t threads) {
    const int64_t rows = in.size(), time = in[0].time, state_size = s.state_size() + s.in_channels;
    Samples out = {Floats(rows * time, 0.f), Floats(rows * s.parameters() * time, 0.f), Floats(rows * state_size, 0.f)};
    Floats space = workspace(kernels().wavenet_sample_workspace(s, rows)), c, g;
    for (const Inputs& row : in) {
        c.insert(c.end(), row.c.begin(), row.c.end());
        g.insert(g.end(), row.g.begin(), row.g.end());
    }
    WaveNetSampleParams p{};
    p.shape = s;
    p.weights = packed.data();
    p.distribution = distribution;
    p.log_scale_min = -7;
    p.clamp = p.temperature = 1;
    p.table = table.data();
    p.noise = noise.data();
    p.c = c.empty() ? nullptr : c.data();
    p.g = g.data();
    p.state = out.state.data();
    p.samples = out.samples.data();
    p.parameters = out.parameters.data();
    p.lengths = lengths.data();
    p.rows = rows;
    p.time = time;
    p.noise_channels = noise.size() / (rows * time);
    p.cond_time = in[0].cond_time;
    p.state_size = state_size;
    p.workspace = space.data();
    Helpers helpers(threads);
    p.team = threads > 1 ? &helpers : nullptr;
    kernels().wavenet_sample(p);
    return out;
}

void test_wavenet_sample(const std::string& name, const StackShape& s, Distribution distribution, int64_t rows) {
    const std::string what = "wavenet_sample " + name + ", " + std::to_string(rows) + " rows";
    const Weights weights(s);
    const Floats packed = weights.packed(s);
    const int64_t time = rows == 1 ? 101 : 37, n = s.parameters();
    const int64_t channels = distribution == Distribution::mixture_of_logistics ? n / 3 + 1 : 1;
    Floats table(n), parameters;
    for (int64_t i = 0; i < n; ++i) table[i] = 2.f * i / n - 1;
    std::vector<int64_t> lengths(rows, time);
    if (rows > 1) lengths[1] = 9;
    std::vector<Inputs> paths;
    double draws_off = 0;
    while (static_cast<int64_t>(paths.size()) < utterances) {
        Floats noise = random(rows * channels * time);
        if (distribution != Distribution::gaussian) {
            std::uniform_real_distribution<float> uniform(0.01f, 0.99f);
            for (float& value : noise) value = uniform(generator);
        }
        std::vector<Inputs> in;
        for (int64_t row = 0; row < rows; ++row) {
            in.push_back(make_inputs(s, time, true));
            in[row].u.clear();
        }
        const Samples out = run_sampler(s, packed, distribution, table, noise, in, lengths, 1);
        check(run_sampler(s, packed, distribution, table, noise, in, lengths, 3) == out, what + " on 3 threads");

        for (int64_t row = 0; row < rows; ++row) {  // every parameter, on the path that was drawn
            const int64_t length = in[row].time = lengths[row];
            Floats& path = in[row].x;
            path.assign(s.in_channels * length, 0.f);
            for (int64_t t = 0; t < length; ++t) {
                const float sample = out.samples[row * time + t];
                if (s.in_channels == 1)
                    path[t] = sample;
                else
                    path[(std::find(table.begin(), table.end(), sample) - table.begin()) * length + t] = 1;
                std::vector<double> p(n), z(channels);
                for (int64_t i = 0; i < n; ++i) p[i] = out.parameters[(row * n + i) * time + t];
                for (int64_t i = 0; i < channels; ++i) z[i] = noise[(row * channels + i) * time + t];
                const Expected draw = expected_draw(distribution, p, z, table);
                draws_off = std::max(draws_off, std::abs(sample - draw.value) / draw.size);
            }
            const Floats all(out.parameters.begin() + row * n * time, out.parameters.begin() + (row + 1) * n * time);
            const Floats valid = cut(all, time, 0, length);
            parameters.insert(parameters.end(), valid.begin(), valid.end());
            paths.push_back(in[row]);
        }
    }
    const double bound = std::ldexp(4.0, -24);
    check(draws_off <= bound, what + " draws", draws_off, bound);
    check_close(what, parameters, s, weights, paths, 1);
}

// ---- shapes: those of tests/test_gated_stack.py ---------------------------------------------------------------------

StackShape plain() {
    StackShape s{};
    s.in_channels = 1;
    s.front_width = 5;
    s.front_causal = s.front_relu = s.causal = true;
    s.residual = 20;
    s.gate = 24;
    s.skip = 18;
    s.kernel_size = 3;
    s.residual_scale = std::sqrt(0.5f);
    s.cond_channels = 7;
    s.cond_repeat = s.cond_taps = 1;
    s.epilogue = Epilogue::none;
    s.delay = Delay::none;
    return s;
}

template <class Change>
Spec spec(const char* name, Change change) {
    Spec made = {name, plain(), {1, 2, 4, 8, 16, 3}, {18, 2}, {1, 1}};
    change(made);
    return made;
}

void channels(Spec& m, int64_t residual, int64_t gate, int64_t skip) {
    m.shape.residual = residual;
    m.shape.gate = gate;
    m.shape.skip = skip;
}

std::vector<Spec> specs() {
    return {
        spec("plain", [](Spec&) {}),
        spec("tiny", [](Spec& m) { channels(m, 1, 1, 1), m.shape.cond_channels = 1, m.head_channels = {1, 2}; }),
        spec("lanes", [](Spec& m) { channels(m, 16, 32, 48); }),
        spec("lanes-1", [](Spec& m) { channels(m, 15, 31, 47); }),
        spec("lanes+1", [](Spec& m) { channels(m, 17, 33, 49); }),
        spec("wide", [](Spec& m) { channels(m, 128, 128, 128), m.dilations = {1, 2, 9}; }),
        spec("k1", [](Spec& m) { m.shape.kernel_size = 1; }),
        spec("k2", [](Spec& m) { m.shape.kernel_size = 2, m.dilations = {1, 7, 8, 9, 64}; }),
        spec("front32", [](Spec& m) { m.shape.front_width = 32; }),
        spec("unconditional", [](Spec& m) { m.shape.cond_channels = 0; }),
        spec("repeat-3", [](Spec& m) { m.shape.cond_repeat = 3; }),
        spec("repeat", [](Spec& m) { m.shape.cond_repeat = 16; }),
        spec("no-skip", [](Spec& m) { m.shape.skip = 0, m.head_channels = {2}, m.head_relu = {0}; }),
        spec("three-heads", [](Spec& m) { m.head_channels = {30, 5, 2}, m.head_relu = {0, 1, 0}; }),
        spec("centred", [](Spec& m) { m.shape.causal = m.shape.front_causal = false; }),
        spec("logistics", [](Spec& m) { m.head_channels = {18, 30}; }),
        spec("one-hot", [](Spec& m) { m.head_channels = {18, 40}, m.shape.in_channels = 40; }),
    };
}

}  // namespace

int main() {
    for (const std::string& isa : isas()) {
        select_isa(isa);
        generator.seed(0);
        for (Dtype dtype : {Dtype::float32, Dtype::bfloat16, Dtype::int8})
            for (Spec& spec : specs()) {
                StackShape& s = spec.shape;
                s.dtype = dtype;
                s.layers = spec.dilations.size();
                s.dilations = spec.dilations.data();
                s.heads = spec.head_channels.size();
                s.head_channels = spec.head_channels.data();
                s.head_relu = spec.head_relu.data();
                const std::string name = spec.name + (dtype == Dtype::float32 ? " float32"
                                                      : dtype == Dtype::int8  ? " int8"
                                                                              : " bfloat16");
                test_gated_stack(name, s);
                if (dtype == Dtype::float32) test_nan(name, s);
                if (!s.causal) continue;
                const Distribution distribution = s.in_channels > 1    ? Distribution::softmax
                                                  : s.parameters() > 2 ? Distribution::mixture_of_logistics
                                                                       : Distribution::gaussian;
                for (int64_t rows : {1, 3, 8}) test_wavenet_sample(name, s, distribution, rows);
            }
        std::printf("%s: %d checks, %d failures\n", isa.c_str(), checks, failures);
    }
    return failures ? 1 : 0;
}
