// upsample on the CPU: one polyphase stage after the other, each making only the columns that the next one reads.
// A phase is always computed by the same instructions, wherever its column lies, so a window of frames gives the same
// bits as the whole.
#include "cpu/simd.h"

namespace fastwave::FASTWAVE_ISA {

namespace {

int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// Columns [from, to) of one stage's input or output, (n_mels, to - from); columns outside [0, whole) are zero.
struct Span {
    float* data;
    int64_t from, to;
    int64_t columns() const { return to - from; }
};

// out[f, q s + r] = act(b + sum V[i, o, r] in[f + i - K / 2, q + o]), o <= 0 in a causal stage
void stage(const UpsampleParams& p, const float* weights, int64_t scale, const Span& in, const Span& out) {
    const float bias = weights[0];
    const float* phases = weights + 1;
    for (int64_t f = 0; f < p.n_mels; ++f)
        for (int64_t q = floor_div(out.from, scale); q * scale < out.to; ++q) {
            const int64_t begin = out.from > q * scale ? out.from - q * scale : 0;
            const int64_t end = out.to - q * scale < scale ? out.to - q * scale : scale;
            float* column = out.data + f * out.columns() + q * scale - out.from;
            for (int64_t r = begin; r < end; ++r) column[r] = bias;
            for (int64_t i = 0; i < p.freq_kernel; ++i) {
                const int64_t band = f + i - p.freq_kernel / 2;
                if (band < 0 || band >= p.n_mels) continue;
                for (int64_t j = 0; j < 3; ++j) {
                    const int64_t at = q + j - 1 - p.causal;
                    if (at < in.from || at >= in.to) continue;
                    const float x = in.data[band * in.columns() + at - in.from];
                    const float* phase = phases + (i * 3 + j) * scale;
                    for (int64_t r = begin; r < end; ++r) column[r] += phase[r] * x;
                }
            }
            for (int64_t r = begin; r < end; ++r) column[r] = column[r] < 0 ? column[r] * p.slope : column[r];
        }
}

// out[m, t] = sum over n, j of W[m, n, j] mel[n, t + j]
void context(const UpsampleParams& p, const float* weights, const Span& out) {
    const int64_t taps = 2 * p.context + 1;
    for (int64_t m = 0; m < p.n_mels; ++m)
        for (int64_t t = out.from; t < out.to; ++t) {
            float sum = 0.f;
            for (int64_t n = 0; n < p.n_mels; ++n)
                for (int64_t j = 0; j < taps; ++j)
                    sum += weights[(m * p.n_mels + n) * taps + j] * p.mel[n * p.frames + t + j];
            out.data[m * out.columns() + t - out.from] = sum;
        }
}

// The columns that each stage makes, last stage first found: its own, and those beside them that the next one reads.
struct Plan {
    static constexpr int64_t most = 32;
    Span spans[most + 1];  // spans[i]: the input of stage i; spans[stages]: the output

    explicit Plan(const UpsampleParams& p) {
        int64_t rate = 1;
        for (int64_t i = 0; i < p.stages; ++i) rate *= p.scales[i];
        const int64_t frames = p.frames - (p.context_conv ? 2 * p.context : 0);  // that the first stage has
        const int64_t first = p.first + (p.context_conv ? 0 : p.context);
        spans[p.stages] = {nullptr, first * rate, (first + p.out_frames) * rate};
        int64_t whole = frames * rate;
        for (int64_t i = p.stages; i-- > 0;) {
            whole /= p.scales[i];
            const int64_t from = floor_div(spans[i + 1].from, p.scales[i]) - 1 - p.causal;
            const int64_t to = floor_div(spans[i + 1].to - 1, p.scales[i]) + 2 - p.causal;
            spans[i] = {nullptr, from > 0 ? from : 0, to < whole ? to : whole};
        }
    }
};

}  // namespace

int64_t upsample_workspace(const UpsampleParams& params) {
    const Plan plan(params);
    int64_t floats = 0;
    for (int64_t i = 0; i < params.stages; ++i) floats += params.n_mels * plan.spans[i].columns();
    return floats;
}

void upsample(const UpsampleParams& p) {
    if (p.out_frames <= 0) return;
    Plan plan(p);
    float* workspace = p.workspace;
    for (int64_t i = 0; i < p.stages; ++i) {
        plan.spans[i].data = workspace;
        workspace += p.n_mels * plan.spans[i].columns();
    }
    plan.spans[p.stages].data = p.out;
    const float* weights = p.weights;
    const Span& first = plan.spans[0];
    if (p.context_conv) {
        int64_t floats = 0;
        for (int64_t i = 0; i < p.stages; ++i) floats += 1 + p.freq_kernel * 3 * p.scales[i];
        context(p, weights + floats, first);
    } else {
        for (int64_t m = 0; m < p.n_mels; ++m)
            for (int64_t t = first.from; t < first.to; ++t)
                first.data[m * first.columns() + t - first.from] = p.mel[m * p.frames + t];
    }
    for (int64_t i = 0; i < p.stages; ++i) {
        stage(p, weights, p.scales[i], plan.spans[i], plan.spans[i + 1]);
        weights += 1 + p.freq_kernel * 3 * p.scales[i];
    }
}

}  // namespace fastwave::FASTWAVE_ISA
