// What a core can do at best: multiply-adds on registers, and reads. The benchmarks hold the kernels against these.
#include "cpu/words.h"

namespace fastwave::FASTWAVE_ISA {

namespace {

// Independent chains: enough to hide the latency of a multiply-add, and with two operands no more than the registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int chains = 24;
#else
constexpr int chains = 12;
#endif

// Chains of whole panels of int8, and inputs among them. Where it is widened, a product does not read its sum, and
// would be made once for all rounds: so inputs are widened again in each round, one for two panels as in a tile.
#if defined(__AVX512VNNI__)
constexpr int panel_chains = chains, inputs = 1;
constexpr bool inputs_change = false;
#else
constexpr int panel_chains = vectors == 1 ? 6 : 1, inputs = (panel_chains + 1) / 2;
constexpr bool inputs_change = true;
#endif

constexpr int streams = 8;

// A value in a register that the compiler must take for another one from here on.
template <class V>
FASTWAVE_INLINE void renew(V& value) {
#if defined(__x86_64__)
    asm volatile("" : "+x"(value));
#elif defined(__aarch64__)
    asm volatile("" : "+w"(value));
#else
    asm volatile("" : "+m"(value));
#endif
}

template <class T>
int64_t multiply_adds(int64_t rounds, float* sink) {
    const int64_t per_word = panel / depth_words(T::dtype, panel);
    alignas(64) float weights[2 * panel], starts[2 * panel + chains];
    memset(weights, 0x3f, sizeof(weights));  // near 3/4 in either float, 63 in int8
    for (int i = 0; i < 2 * panel + chains; ++i) starts[i] = static_cast<float>(i);  // equal chains would be one
    asm volatile("" : "+m"(weights), "+m"(starts));
    vec sum = splat(0.f);
    if constexpr (T::integer) {
        typename T::Sum acc[panel_chains];
#pragma GCC unroll 24
        for (int i = 0; i < panel_chains; ++i) T::start(acc[i], starts + i);
        float x[inputs];
        for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 24
            for (int i = 0; i < inputs; ++i) {
                x[i] = weights[0];
                if (inputs_change) renew(x[i]);
            }
#pragma GCC unroll 24
            for (int i = 0; i < panel_chains; ++i)
                T::accumulate(acc[i], weights + i / inputs % 2 * panel, x + i % inputs);
        }
#pragma GCC unroll 24
        for (int i = 0; i < panel_chains; ++i)
            for (int v = 0; v < vectors; ++v) sum += to_float(T::finish(acc[i], v));
    } else {
        vec acc[chains];
        for (int i = 0; i < chains; ++i) acc[i] = splat(starts[i]);
        vec weight = load(weights);
        const vec input = splat(weights[0]);
        for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 24
            for (int i = 0; i < chains; ++i) {
#if defined(__x86_64__) && !defined(__FMA__)
                renew(weight);  // nor does a product here read its sum
#endif
                T::accumulate(acc[i], weight, input);
            }
        }
        for (int i = 0; i < chains; ++i) sum += acc[i];
    }
    *sink = sum[0];
    return rounds * per_word * (T::integer ? panel_chains * panel : chains * width);
}

}  // namespace

// Returns the number of multiply-adds done; `sink` keeps the result alive.
int64_t peak(int64_t rounds, Dtype dtype, float* sink) {
    return with_type(dtype, [&](auto type) { return multiply_adds<decltype(type)>(rounds, sink); });
}

// Sums `floats` floats, a multiple of 128, `times` times over.
float read(const float* data, int64_t floats, int64_t times) {
    vec acc[streams];
    for (int i = 0; i < streams; ++i) acc[i] = splat(0.f);
    for (int64_t time = 0; time < times; ++time)
        for (int64_t at = 0; at < floats; at += streams * width)
#pragma GCC unroll 8
            for (int i = 0; i < streams; ++i) acc[i] += load(data + at + i * width);
    vec sum = acc[0];
    for (int i = 1; i < streams; ++i) sum += acc[i];
    float total = 0.f;
    for (int i = 0; i < width; ++i) total += sum[i];
    return total;
}

}  // namespace fastwave::FASTWAVE_ISA
