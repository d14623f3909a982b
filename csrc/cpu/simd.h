// One vector type whose width follows the flags of the file's build, and the few functions on it that kernels need.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "params.h"

#define FASTWAVE_INLINE static inline __attribute__((always_inline))

namespace fastwave::FASTWAVE_ISA {

// tile_columns: columns of a 2-panel tile whose accumulators, with the weights and one input, fit the registers.
#if defined(__AVX512F__)
constexpr int width = 16, tile_columns = 12;
#elif defined(__AVX2__)
constexpr int width = 8, tile_columns = 3;
#elif defined(__aarch64__)
constexpr int width = 4, tile_columns = 2;
#else
constexpr int width = 4, tile_columns = 1;
#endif
constexpr int vectors = panel / width;  // per panel

typedef float vec __attribute__((vector_size(width * 4)));
typedef int32_t ivec __attribute__((vector_size(width * 4)));
typedef float unaligned_vec __attribute__((vector_size(width * 4), aligned(4), may_alias));

FASTWAVE_INLINE vec load(const float* p) { return *reinterpret_cast<const unaligned_vec*>(p); }
FASTWAVE_INLINE void store(float* p, vec v) { *reinterpret_cast<unaligned_vec*>(p) = v; }

#if defined(__AVX512F__)
FASTWAVE_INLINE vec splat(float x) { return _mm512_set1_ps(x); }
FASTWAVE_INLINE vec fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
FASTWAVE_INLINE vec min(vec a, vec b) { return _mm512_min_ps(a, b); }
FASTWAVE_INLINE vec max(vec a, vec b) { return _mm512_max_ps(a, b); }
FASTWAVE_INLINE ivec nearest(vec a) { return (ivec)_mm512_cvtps_epi32(a); }
#elif defined(__AVX2__)
FASTWAVE_INLINE vec splat(float x) { return _mm256_set1_ps(x); }
FASTWAVE_INLINE vec fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
FASTWAVE_INLINE vec min(vec a, vec b) { return _mm256_min_ps(a, b); }
FASTWAVE_INLINE vec max(vec a, vec b) { return _mm256_max_ps(a, b); }
FASTWAVE_INLINE ivec nearest(vec a) { return (ivec)_mm256_cvtps_epi32(a); }
#elif defined(__aarch64__)
FASTWAVE_INLINE vec splat(float x) { return vdupq_n_f32(x); }
FASTWAVE_INLINE vec fma(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
FASTWAVE_INLINE vec min(vec a, vec b) { return vminq_f32(a, b); }
FASTWAVE_INLINE vec max(vec a, vec b) { return vmaxq_f32(a, b); }
FASTWAVE_INLINE ivec nearest(vec a) { return (ivec)vcvtnq_s32_f32(a); }
#else
FASTWAVE_INLINE vec splat(float x) { return vec{x, x, x, x}; }
FASTWAVE_INLINE vec fma(vec a, vec b, vec c) { return a * b + c; }  // rounds twice: baseline x86-64 has no fused one
FASTWAVE_INLINE vec min(vec a, vec b) { return a < b ? a : b; }
FASTWAVE_INLINE vec max(vec a, vec b) { return a > b ? a : b; }
FASTWAVE_INLINE ivec nearest(vec a) {
#if defined(__SSE2__)
    return (ivec)_mm_cvtps_epi32(a);
#else
    ivec n;
    for (int i = 0; i < width; ++i) n[i] = static_cast<int32_t>(__builtin_rintf(a[i]));
    return n;
#endif
}
#endif

FASTWAVE_INLINE ivec splat_int(int32_t x) { return ivec{} + x; }
FASTWAVE_INLINE vec abs(vec a) { return (vec)((ivec)a & splat_int(0x7fffffff)); }
FASTWAVE_INLINE vec to_float(ivec a) { return __builtin_convertvector(a, vec); }

FASTWAVE_INLINE float largest_lane(vec a) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps(a);
#else
    float largest = a[0];
    for (int i = 1; i < width; ++i) largest = a[i] > largest ? a[i] : largest;
    return largest;
#endif
}

// The low byte of each lane.
FASTWAVE_INLINE void store_bytes(uint8_t* p, ivec a) {
#if defined(__AVX512F__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8((__m512i)a));
#else
    for (int i = 0; i < width; ++i) p[i] = static_cast<uint8_t>(a[i]);
#endif
}

// e^x for |x| <= 87, within 3.1 ulp (2.8 where the multiply-add is fused): 2^n e^r with n = round(x / ln 2) and a
// polynomial of degree 6 on |r| <= ln 2 / 2.
FASTWAVE_INLINE vec exp(vec x) {
    const vec magic = splat(12582912.f);  // 1.5 * 2^23: the sum's low bits are n
    vec shifted = fma(x, splat(1.44269504f), magic);
    vec n = shifted - magic;
    vec r = fma(n, splat(-0.693359375f), x);
    r = fma(n, splat(2.12194440e-4f), r);
    vec p = splat(1.38888889e-3f);
    p = fma(p, r, splat(8.33333333e-3f));
    p = fma(p, r, splat(4.16666667e-2f));
    p = fma(p, r, splat(1.66666667e-1f));
    p = fma(p, r, splat(0.5f));
    p = fma(p, r, splat(1.f));
    p = fma(p, r, splat(1.f));
    return (vec)((ivec)p + ((ivec)shifted << 23));
}

// tanh(f) sigmoid(g) = (1 - E) / ((1 + E) (1 + H)) with E = e^-2f, H = e^-g: one division. The bounds keep the
// denominator finite and lie beyond where float32's tanh is 1 and its sigmoid vanishes against it. min and max give
// their second operand where one is NaN, so a NaN comes out as one.
FASTWAVE_INLINE vec gated(vec f, vec g) {
    vec e = exp(splat(-2.f) * max(splat(-9.5f), min(splat(9.5f), f)));
    vec h = exp(-max(splat(-60.f), min(splat(60.f), g)));
    return (splat(1.f) - e) / ((splat(1.f) + e) * (splat(1.f) + h));
}

}  // namespace fastwave::FASTWAVE_ISA
