// Draws from a network's output parameters and the caller's noise, one sample at a time; fastwave/ops/heads.py has the
// same in PyTorch. One source for host and device. `next(i)` gives parameter i, `noise(i)` noise channel i.
#pragma once

#include "params.h"

#if defined(__CUDACC__)
#define FASTWAVE_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FASTWAVE_HOST_DEVICE static inline __attribute__((always_inline))
#endif

namespace fastwave {

struct Draw {
    float value;
    int64_t index;  // of a softmax's class
};

// The component of a mixture: arg-max of the logits, plus Gumbel noise -log(-log u) unless the temperature is 0.
template <class Parameters, class Noise>
FASTWAVE_HOST_DEVICE int64_t draw_component(int64_t components, float temperature, Parameters parameters, Noise noise) {
    int64_t best = 0;
    float best_score = 0.f;
    for (int64_t i = 0; i < components; ++i) {
        float score = parameters(i);
        if (temperature != 0.f) score -= logf(-logf(noise(i)));
        if (i == 0 || score > best_score) {
            best = i;
            best_score = score;
        }
    }
    return best;
}

// How many cumulative probabilities are <= u; at temperature 0 the likeliest class.
template <class Parameters, class Noise>
FASTWAVE_HOST_DEVICE int64_t draw_class(int64_t classes, float temperature, Parameters parameters, Noise noise) {
    int64_t best = 0;
    for (int64_t i = 1; i < classes; ++i)
        if (parameters(i) > parameters(best)) best = i;
    if (temperature == 0.f) return best;
    const float top = parameters(best);
    double sum = 0;
    for (int64_t i = 0; i < classes; ++i) sum += expf((parameters(i) - top) / temperature);
    const double threshold = sum * noise(0);
    double cumulative = 0;
    for (int64_t i = 0; i < classes; ++i) {
        cumulative += expf((parameters(i) - top) / temperature);
        if (cumulative > threshold) return i;
    }
    return classes - 1;
}

template <class Parameters, class Noise>
FASTWAVE_HOST_DEVICE Draw draw(Distribution distribution, int64_t n_params, float temperature, float log_scale_min,
                               float clamp, const float* table, Parameters parameters, Noise noise) {
    if (distribution == Distribution::softmax) {
        const int64_t index = draw_class(n_params, temperature, parameters, noise);
        return {table[index], index};
    }
    float mean = parameters(0), log_scale = parameters(1), standard = 0.f;
    if (distribution == Distribution::gaussian) {
        standard = noise(0);
    } else {
        const int64_t components = n_params / 3;
        const int64_t i = draw_component(components, temperature, parameters, noise);
        mean = parameters(components + i);
        log_scale = parameters(2 * components + i);
        const float last = noise(components);
        standard = distribution == Distribution::mixture_of_gaussians ? last : logf(last) - logf(1.f - last);
    }
    log_scale = log_scale > log_scale_min ? log_scale : log_scale_min;
    float x = temperature == 0.f ? mean : mean + expf(log_scale) * (temperature * standard);
    x = x < -clamp ? -clamp : x;
    return {x > clamp ? clamp : x, 0};
}

}  // namespace fastwave
