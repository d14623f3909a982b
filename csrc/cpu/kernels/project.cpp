// project on the CPU: a product per layer, over columns of c, in the order in which gated_stack's tiles start from
// them.
#include "cpu/stack.h"

namespace fastwave::FASTWAVE_ISA {

namespace {

struct Buffers {
    float *bias, *columns, *cond;
    Buffers(Arena& arena, const StackShape& s, int64_t cond_words)
        : bias(arena.take(s.layers * s.gate_rows())),
          columns(arena.take(turned * turning(s.cond_channels))),
          cond(arena.take(chunk * cond_words)) {}
};

template <class T>
void run(const ProjectParams& p) {
    const StackShape& s = p.shape;
    const int64_t rows = s.gate_rows(), cond_words = apart(T::column_words(s.cond_channels));
    Arena arena = {p.workspace};
    const Buffers buffers(arena, s, cond_words);
    StackWeights weights(p.weights, s);
    LayerWeights layers[max_layers];
    for (int64_t l = 0; l < s.layers; ++l) layers[l] = weights.layer(s, l);
    load_bias(buffers.bias, s, layers, p.g);
    for (int64_t first = 0; first < p.cond_time; first += chunk) {
        if (p.poll && p.poll(p.poll_context)) return;
        const int64_t n = p.cond_time - first < chunk ? p.cond_time - first : chunk;
        const float* x[chunk];
        auto words = [&](int64_t i) { return buffers.cond + i * cond_words; };
        load_columns<T>(words, buffers.columns, p.c + first * p.cond_group, s.cond_channels, p.cond_time * p.cond_group,
                        n, 1, p.cond_group);
        for (int64_t i = 0; i < n; ++i) x[i] = words(i);
        split(p.team, [&](int64_t part, int64_t parts) {
            for (int64_t l = part; l < s.layers; l += parts) {
                const float* init[chunk];
                float* out[chunk];
                for (int64_t i = 0; i < n; ++i) {
                    init[i] = buffers.bias + l * rows;
                    out[i] = p.out + l * rows * p.cond_time + (first + i) * panel;
                }
                const Segment segment = {layers[l].cond, s.cond_channels, x};
                product<T>({0, rows / panel}, n, &segment, 1, init, StorePlain{out, false, p.cond_time * panel});
            }
        });
    }
}

}  // namespace

int64_t project_workspace(const StackShape& shape) {
    return with_type(shape.dtype, [&](auto type) {
        Arena arena = {nullptr};
        const Buffers buffers(arena, shape, apart(decltype(type)::column_words(shape.cond_channels)));
        return arena.used;
    });
}

void project(const ProjectParams& params) {
    with_type(params.shape.dtype, [&](auto type) { run<decltype(type)>(params); });
}

}  // namespace fastwave::FASTWAVE_ISA
