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

#include "cpu/stage.h"

namespace fastwave::FASTWAVE_ISA {

namespace {

constexpr int64_t fewest = 24;  // columns of a turn, for which a layer's weights are read once

// Every column that the state holds of layers and of the skip sum, where `now` columns of x have been read. A layer has
// made its output up to now - lag: of what lies before it needs v, and from there on h, which makes v.
template <class Past, class Present, class Skip>
float* walk_state(const StackShape& s, float* at, int64_t now, const Past& past, const Present& present,
                  const Skip& skip) {
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
void restore(const Stack<T>& stack) {
    const GatedStackParams& p = stack.p;
    const StackShape& s = stack.s;
    const Buffers<T>& buffers = stack.buffers;
    float* const sum = buffers.scratch[0].column;
    float* saved = p.state ? p.state + s.front_history() * s.in_channels : nullptr;
    if (saved)
        saved = walk_state(
            s, saved, 0,
            [&](const float* column, int64_t l, int64_t t) {
                memcpy(sum, column, s.residual * sizeof(float));
                stack.hold(buffers.v[l].at(t), sum);
            },
            [&](const float* column, int64_t l, int64_t t) {
                memset(buffers.h[l].at(t), 0, padded(s.residual) * sizeof(float));
                memcpy(buffers.h[l].at(t), column, s.residual * sizeof(float));
                stack.round(l, t, 1, sum);
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
void save(const Stack<T>& stack) {
    const GatedStackParams& p = stack.p;
    const StackShape& s = stack.s;
    const Buffers<T>& buffers = stack.buffers;
    const int64_t begin = stack.begin;
    const int64_t in = s.in_channels, history = s.front_history(), now = s.look_ahead() == 0 ? p.length : p.time;
    if (now < history) memmove(p.state, p.state + now * in, (history - now) * in * sizeof(float));
    for (int64_t t = now > history ? now - history : 0; t < now; ++t)
        for (int64_t ch = 0; ch < in; ++ch)
            p.state[(t - now + history) * in + ch] = t < p.length ? p.x[ch * p.time + stack.place(t)] : 0.f;
    auto copy = [&](float* column, int64_t t, const float* from, int64_t channels) {
        if (t >= begin && t < p.length)
            memcpy(column, from, channels * sizeof(float));
        else
            memset(column, 0, channels * sizeof(float));
    };
    float* end = walk_state(
        s, p.state + history * in, now,
        [&](float* column, int64_t l, int64_t t) {
            if (s.separable || t < begin || t >= p.length)
                copy(column, t, buffers.v[l].at(t), s.residual);
            else
                T::widen(column, buffers.v[l].at(t), s.residual);
        },
        [&](float* column, int64_t l, int64_t t) { copy(column, t, buffers.h[l].at(t), s.residual); },
        [&](float* column, int64_t t) { copy(column, t, buffers.skip.at(t), s.skip); });
    if (s.delay == Delay::output) memcpy(end, buffers.parameters, s.parameters() * sizeof(float));
}

template <class T>
void run(const GatedStackParams& p) {
    const StackShape& s = p.shape;
    const Plan plan(s, p.team ? p.team->size : 1);
    Arena arena = {p.workspace};
    Buffers<T> buffers(arena, s, plan);
    const Stack<T> stack(p, buffers, plan);
    restore(stack);

    // of a short call the turns have fewer columns, so that each stage finds work before the first is done
    const int64_t share = (stack.end / plan.stages + tile_columns - 1) / tile_columns * tile_columns;
    const int64_t columns = share < fewest ? fewest : share < chunk ? share : chunk;
    const int64_t turns = stack.end > 0 ? (stack.end + columns - 1) / columns : 0;
    pipeline(plan.stages > 1 ? p.team : nullptr, {plan.stages, turns, slack},
             [&](int64_t stage, int64_t turn) { Stage<T>(stack, plan, stage).run(turn * columns, columns); });

    const int64_t made = p.pending + p.length > 0 ? p.pending + p.length : 0;
    for (int64_t ch = 0; ch < s.out_channels() && made < p.out_time; ++ch)
        memset(p.out + ch * p.out_time + made, 0, (p.out_time - made) * sizeof(float));
    if (p.state) save(stack);
}

}  // namespace

int64_t gated_stack_workspace(const StackShape& shape, int64_t threads) {
    return with_type(shape.dtype, [&](auto type) {
        using T = decltype(type);
        Arena arena = {nullptr};
        const Buffers<T> buffers(arena, shape, Plan(shape, threads));
        return arena.used;
    });
}

void gated_stack(const GatedStackParams& params) {
    with_type(params.shape.dtype, [&](auto type) { run<decltype(type)>(params); });
}

}  // namespace fastwave::FASTWAVE_ISA
