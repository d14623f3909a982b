// The types that a stack's products may run in. Weights and inputs are held in words of 32 bits: one float32, two
// bfloat16 or four int8 of consecutive depth. A panel is (words of its depth, 16 rows) of them, a column its words in
// order, so that one loop over words serves every type. See fastwave/ops/rounding.py for what rounding means.
#pragma once

#include <string.h>

#include "cpu/simd.h"

namespace fastwave::FASTWAVE_ISA {

struct Float32 {
    static constexpr Dtype dtype = Dtype::float32;
    static constexpr bool integer = false;
    static constexpr bool same_as_float = true;

    static int64_t column_words(int64_t channels) { return padded(channels); }
    FASTWAVE_INLINE void accumulate(vec& acc, vec weight, vec x) { acc = fma(weight, x, acc); }
    // words <- x, for `channels` channels; x is readable, and zero, up to padded(channels)
    static void round(float* words, const float* x, int64_t channels) {
        memcpy(words, x, padded(channels) * sizeof(float));
    }
    static void widen(float* x, const float* words, int64_t channels) { memcpy(x, words, channels * sizeof(float)); }
};

// Two to a word, the earlier depth in the low half; products are summed in float32.
struct BFloat16 {
    static constexpr Dtype dtype = Dtype::bfloat16;
    static constexpr bool integer = false;
    static constexpr bool same_as_float = false;
    typedef uint16_t half __attribute__((may_alias));  // of a word, which products read as a float

    static int64_t column_words(int64_t channels) { return padded(channels) / 2; }

    FASTWAVE_INLINE void accumulate(vec& acc, vec weight, vec x) {
#if defined(__AVX512BF16__)
        acc = _mm512_dpbf16_ps(acc, (__m512bh)weight, (__m512bh)x);
#else
        const ivec upper = splat_int(static_cast<int32_t>(0xffff0000u));
        acc = fma((vec)((ivec)weight << 16), (vec)((ivec)x << 16), acc);
        acc = fma((vec)((ivec)weight & upper), (vec)((ivec)x & upper), acc);
#endif
    }

    static void round(float* words, const float* x, int64_t channels) {
#if defined(__AVX512BF16__)
        for (int64_t i = 0; i < padded(channels); i += panel)
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(words + i / 2), (__m256i)_mm512_cvtneps_pbh(load(x + i)));
#else
        half* out = reinterpret_cast<half*>(words);
        for (int64_t i = 0; i < padded(channels); ++i) {  // to nearest, ties to even; a NaN stays one
            uint32_t bits;
            memcpy(&bits, x + i, sizeof(bits));
            const uint32_t nearest = bits + 0x7fffu + ((bits >> 16) & 1u);
            out[i] = static_cast<half>(((bits & 0x7fffffffu) > 0x7f800000u ? bits | 0x400000u : nearest) >> 16);
        }
#endif
    }

    static void widen(float* x, const float* words, int64_t channels) {
        const half* in = reinterpret_cast<const half*>(words);
        for (int64_t i = 0; i < channels; ++i) {
            const uint32_t bits = static_cast<uint32_t>(in[i]) << 16;
            memcpy(x + i, &bits, sizeof(bits));
        }
    }
};

// Four to a word, summed exactly in int32. A panel ends in 16 scales and 16 offsets, a column in its scale, a power of
// two: so rounding what was rounded changes nothing, and a state can hold floats.
struct Int8 {
    static constexpr Dtype dtype = Dtype::int8;
    static constexpr bool integer = true;
    static constexpr bool same_as_float = false;

    static int64_t column_words(int64_t channels) { return padded(channels) / 4 + 4; }
    static int64_t scale_at(int64_t channels) { return padded(channels) / 4; }

#if defined(__AVX512VNNI__)
    // vpdpbusd multiplies unsigned by signed: columns hold q + 128, and each row's offset is -128 times its sum.
    static constexpr uint8_t bias = 128;
    struct Sum {
        ivec value[vectors];
    };
    FASTWAVE_INLINE void start(Sum& sum, const float* panel_end) {
        for (int v = 0; v < vectors; ++v) sum.value[v] = (ivec)load(panel_end + panel + v * width);
    }
    FASTWAVE_INLINE void accumulate(Sum& sum, const float* weights, const float* x) {
        for (int v = 0; v < vectors; ++v)
            sum.value[v] = (ivec)_mm512_dpbusd_epi32((__m512i)sum.value[v], (__m512i)splat(*x),
                                                     (__m512i)load(weights + v * width));
    }
    FASTWAVE_INLINE ivec finish(const Sum& sum, int v) { return sum.value[v]; }
#else
    // Widened to 16 bits and multiplied in pairs, so each row has two partial sums until the end: pairs[0] of the
    // vector's first half of rows, pairs[1] of its second.
    static constexpr uint8_t bias = 0;
    struct Sum {
        ivec pairs[vectors][2];
    };
    FASTWAVE_INLINE void start(Sum& sum, const float*) {
        for (int v = 0; v < vectors; ++v) sum.pairs[v][0] = sum.pairs[v][1] = splat_int(0);
    }
    FASTWAVE_INLINE void accumulate(Sum& sum, const float* weights, const float* x) {
        int32_t word;
        memcpy(&word, x, sizeof(word));
        for (int v = 0; v < vectors; ++v) {
            const float* w = weights + v * width;
#if defined(__AVX512F__)
            const __m512i xs = _mm512_cvtepi8_epi16(_mm256_set1_epi32(word));
            const __m256i* halves = reinterpret_cast<const __m256i*>(w);
            for (int half = 0; half < 2; ++half)
                sum.pairs[v][half] +=
                    (ivec)_mm512_madd_epi16(_mm512_cvtepi8_epi16(_mm256_loadu_si256(halves + half)), xs);
#elif defined(__AVX2__)
            const __m256i xs = _mm256_cvtepi8_epi16(_mm_set1_epi32(word));
            const __m128i* halves = reinterpret_cast<const __m128i*>(w);
            for (int half = 0; half < 2; ++half)
                sum.pairs[v][half] += (ivec)_mm256_madd_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128(halves + half)), xs);
#elif defined(__aarch64__)
            const int8x16_t ws = vreinterpretq_s8_f32(vld1q_f32(w)), xs = vreinterpretq_s8_s32(vdupq_n_s32(word));
            sum.pairs[v][0] = (ivec)vpadalq_s16((int32x4_t)sum.pairs[v][0], vmull_s8(vget_low_s8(ws), vget_low_s8(xs)));
            sum.pairs[v][1] =
                (ivec)vpadalq_s16((int32x4_t)sum.pairs[v][1], vmull_s8(vget_high_s8(ws), vget_high_s8(xs)));
#elif defined(__SSE2__)
            const __m128i ws = _mm_loadu_si128(reinterpret_cast<const __m128i*>(w)), x4 = _mm_set1_epi32(word);
            const __m128i xs = _mm_srai_epi16(_mm_unpacklo_epi8(x4, x4), 8);
            sum.pairs[v][0] += (ivec)_mm_madd_epi16(_mm_srai_epi16(_mm_unpacklo_epi8(ws, ws), 8), xs);
            sum.pairs[v][1] += (ivec)_mm_madd_epi16(_mm_srai_epi16(_mm_unpackhi_epi8(ws, ws), 8), xs);
#else
            const int8_t *ws = reinterpret_cast<const int8_t*>(w), *xs = reinterpret_cast<const int8_t*>(x);
            for (int i = 0; i < 2 * width; ++i)
                sum.pairs[v][i / width][i % width] += ws[2 * i] * xs[2 * i % 4] + ws[2 * i + 1] * xs[2 * i % 4 + 1];
#endif
        }
    }
    FASTWAVE_INLINE ivec finish(const Sum& sum, int v) {
        const ivec a = sum.pairs[v][0], b = sum.pairs[v][1];
#if defined(__AVX512F__)
        const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
        return (ivec)_mm512_permutex2var_epi32((__m512i)a, even, (__m512i)b) +
               (ivec)_mm512_permutex2var_epi32((__m512i)a, odd, (__m512i)b);
#elif defined(__AVX2__)
        return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14) +
               __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
#else
        return __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
#endif
    }
#endif

    static void round(float* words, const float* x, int64_t channels) {
        vec largest = splat(0.f);
        for (int64_t i = 0; i < padded(channels); i += width) largest = max(largest, abs(load(x + i)));
        // the least power of two with peak <= 127.25 scale: the ratio's bits, rounded up to a bare exponent
        const float ratio = largest_lane(largest) * (1.f / 127.25f);
        uint32_t bits;
        memcpy(&bits, &ratio, sizeof(bits));
        bits = (bits + 0x7fffffu) & 0x7f800000u;
        if (bits == 0) bits = 0x00800000u;
        const uint32_t inverse_bits = 0x7f000000u - bits;
        float scale, inverse;
        memcpy(&scale, &bits, sizeof(bits));
        memcpy(&inverse, &inverse_bits, sizeof(bits));
        uint8_t* out = reinterpret_cast<uint8_t*>(words);
        for (int64_t i = 0; i < padded(channels); i += width)
            store_bytes(out + i, nearest(load(x + i) * splat(inverse)) + splat_int(bias));
        words[scale_at(channels)] = scale;
    }

    static void widen(float* x, const float* words, int64_t channels) {
        const uint8_t* in = reinterpret_cast<const uint8_t*>(words);
        for (int64_t i = 0; i < channels; ++i) x[i] = static_cast<int8_t>(in[i] - bias) * words[scale_at(channels)];
    }
};

// x in words of T: rounded into `words`, or itself.
template <class T>
FASTWAVE_INLINE const float* as_words(float* words, const float* x, int64_t channels) {
    if constexpr (T::same_as_float) return x;
    T::round(words, x, channels);
    return words;
}

template <class Function>
FASTWAVE_INLINE auto with_type(Dtype dtype, Function function) {
    switch (dtype) {
        case Dtype::bfloat16: return function(BFloat16{});
        case Dtype::int8: return function(Int8{});
        default: return function(Float32{});
    }
}

}  // namespace fastwave::FASTWAVE_ISA
