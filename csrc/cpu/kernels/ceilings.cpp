// What a core can do at best: multiply-adds on registers, and reads. The benchmarks hold the kernels against these.
#include "cpu/simd.h"

namespace fastwave::FASTWAVE_ISA {

namespace {

// Independent chains: enough to hide the latency of a multiply-add, and with two operands no more than the registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int chains = 24;
#else
constexpr int chains = 12;
#endif

constexpr int streams = 8;

}  // namespace

// Returns the number of multiply-adds done; `sink` keeps the result alive.
int64_t peak(int64_t rounds, float* sink) {
    vec acc[chains];
    for (int i = 0; i < chains; ++i) acc[i] = splat(static_cast<float>(i));
    const vec factor = splat(0.5f), term = splat(1.f);
    for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 24
        for (int i = 0; i < chains; ++i) acc[i] = fma(acc[i], factor, term);
    }
    vec sum = acc[0];
    for (int i = 1; i < chains; ++i) sum += acc[i];
    *sink = sum[0];
    return rounds * chains * width;
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
