// wavenet_sample as a pipeline of blocks that stay: each has some of the layers, the last one the head, and the drawn
// sample goes back to the first. A block keeps its weights as near as they fit.
//
// On the way of a sample, from block to block: h, the gate's current tap, the residual product. Everything else a block
// does behind its message, while it would wait for the next: its skip products, then what is known of the next
// sample's pre-activations: bias, g, conditioning, past taps. So conditioning is never stored, and of the front only
// the newest input is waited for.
//
// Rows are taken in groups of `columns`; a pipeline may have several groups under way, each with buffers of its own.
// The order of accumulation is the CPU's: bias, g, conditioning, taps oldest first.
#pragma once

#include "cuda/sampler_params.cuh"

namespace fastwave::cuda {

template <class T, int columns, class Hop, class Size>
class Sampler {
public:
    __device__ Sampler(const SamplerParams& params)
        : p(params),
          stage(static_cast<int>(blockIdx.x)),
          stages(static_cast<int>(gridDim.x)),
          pipeline(static_cast<int>(blockIdx.y)),
          pipelines(static_cast<int>(gridDim.y)),
          warp(static_cast<int>(threadIdx.x / 32)),
          warps(static_cast<int>(blockDim.x / 32)),
          first_layer(min(p.layers, stage * p.stage_layers)),
          layers(min(p.layers, (stage + 1) * p.stage_layers) - first_layer),
          arena{shared_memory(), p.shared_bytes, p.workspace + (pipeline * stages + stage) * p.block_bytes, 0},
          b(shared_copy(Buffers<T, columns>(arena, p, layers))),
          hop(shared_copy(Place{stage,
                                p.groups,
                                {b.residual_words(), b.skip_words, b.sample_words},
                                b.barriers,
                                p.boxes + pipeline * p.pipeline_packets,
                                1u + p.start})) {
        const int64_t all = (p.rows + columns - 1) / columns;
        groups = static_cast<int>((all - pipeline + pipelines - 1) / pipelines);
    }

    __device__ void run() {
        find_layers();
        __syncthreads();
        load_state();
        __syncthreads();
        hold_weights();
        for (int group = 0; group < groups; ++group) look_ahead(group, 0);
        hop.open();
        bool alive = true;
        for (int n = 0; n < p.steps && alive; ++n)
            for (int group = 0; group < groups && alive; ++group) alive = step(group, n);
        if (stage == 0)
            for (int group = 0; group < groups && alive; ++group) alive = receive_sample(group, p.steps);
        hop.close();
        if (alive)
            save_state();
        else if (threadIdx.x == 0)
            *p.status = 1 + stage;
    }

private:
    // ---- sizes, and where things are --------------------------------------------------------------------------------

    __device__ int residual() const { return Size::residual ? Size::residual : p.residual; }
    __device__ int gate() const { return Size::gate ? Size::gate : p.gate; }
    __device__ int x_stride() const { return Size::residual ? column_stride(T::words(Size::residual)) : b.x_stride; }
    __device__ int z_stride() const { return Size::gate ? column_stride(T::words(Size::gate)) : b.z_stride; }
    __device__ bool last_stage() const { return stage + 1 == stages; }
    __device__ bool has_residual(int layer) const { return layer + 1 < p.layers || p.skip == 0; }
    // Whether a stage reads h: all but a head that reads the skip sum.
    __device__ bool reads_residual(int of_stage) const { return of_stage * p.stage_layers < p.layers || p.skip == 0; }

    // A value that all threads have, where it takes no registers.
    template <class Value>
    __device__ const Value& shared_copy(const Value& value) {
        Value* copy = arena.take<Value>(1);
        if (threadIdx.x == 0) *copy = value;
        __syncthreads();
        return *copy;
    }

    __device__ int64_t reach_before(int layer) const {
        int64_t sum = 0;
        for (int i = 0; i < layer; ++i) sum += int64_t{p.kernel_size - 1} * p.dilations[i];
        return sum;
    }

    __device__ int64_t row_of(int group, int column) const {
        return (int64_t{group} * pipelines + pipeline) * columns + column;
    }
    __device__ bool is_row(int group, int column) const { return row_of(group, column) < p.rows; }
    // Samples that a row gets in this launch.
    __device__ int steps_of(int64_t row) const {
        const int64_t length = p.lengths ? p.lengths[row] : p.time;
        return static_cast<int>(max(int64_t{0}, min(int64_t{p.steps}, length - p.start)));
    }

    __device__ uint32_t* message(int group) const { return b.residual + int64_t{group} * b.residual_words(); }
    __device__ float* h_of(int group) const { return reinterpret_cast<float*>(message(group)); }
    __device__ uint32_t* x_of(int group) const { return message(group) + b.h_words; }
    __device__ uint32_t* skip_of(int group) const { return b.skip + int64_t{group} * b.skip_words; }
    __device__ uint32_t* sample_of(int group) const { return b.sample + int64_t{group} * b.sample_words; }
    __device__ Fragment* ahead_of(int group, int layer, int unit) const {
        return b.ahead + (((int64_t{group} * layers + layer) * b.units + unit) * 32 + lane_index()) * 2;
    }
    __device__ float* ring_at(const Layer& layer, int group, int place, int column) const {
        return layer.ring + ((int64_t{group} * layer.reach + place) * columns + column) * residual();
    }

    // Words of memory, copied into shared memory if they fit.
    __device__ const uint32_t* resident(const uint32_t* words, int64_t count) {
        if (count * 4 > arena.shared_left) return words;
        uint32_t* copy = arena.take<uint32_t>(count);
        for (int64_t i = threadIdx.x; i < count; i += blockDim.x) copy[i] = words[i];
        return copy;
    }

    __device__ const uint32_t* words_of(int layer) const {
        return p.first_layer + (first_layer + layer) * p.layer_words;
    }

    // What is on a sample's way takes its place in shared memory first: of all layers the gate's current tap and the
    // residual product, but for those that are held in registers, and the head.
    __device__ void find_layers() {
        const int R = padded_rows(residual()), S = padded_rows(p.skip), G2 = 2 * padded_rows(gate());
        const int64_t tap = int64_t{G2} * T::words(residual()), row = T::words(gate());
        const int64_t reach_words = int64_t{p.groups} * columns * residual();
        float* ring = p.rings + (pipeline * reach_before(p.layers) + reach_before(first_layer)) * reach_words;
        int64_t state_at = int64_t{p.front_width} * p.in_channels + reach_before(first_layer) * residual();
        for (int i = 0; i < layers; ++i) {
            const uint32_t* words = words_of(i);
            const int rows = has_residual(first_layer + i) ? R : 0;
            Layer layer = {};
            layer.bias = reinterpret_cast<const float*>(words);
            layer.residual_bias = reinterpret_cast<const float*>(words + p.product_at);
            layer.skip_bias = layer.residual_bias + rows;
            layer.current = words + p.taps_at + (p.kernel_size - 1) * tap;
            if (i >= Size::gates) layer.current = resident(layer.current, tap);
            layer.residual = words + p.product_at + rows + S;
            if (i >= Size::residuals) layer.residual = resident(layer.residual, rows * row);
            layer.dilation = p.dilations[first_layer + i];
            layer.reach = (p.kernel_size - 1) * layer.dilation;
            layer.ring = ring;
            layer.state_at = state_at;
            ring += layer.reach * reach_words;
            state_at += int64_t{layer.reach} * residual();
            if (threadIdx.x == 0) b.layers[i] = layer;
        }
        head = p.head;
        if (last_stage()) {
            int64_t words = 0;
            int depth = p.skip ? p.skip : residual();
            for (int i = 0; i < p.heads; ++i) {
                words += int64_t{padded_rows(p.head_channels[i])} * (1 + depth);
                depth = p.head_channels[i];
            }
            head = resident(head, words);
        }
        for (int i = 0; i < layers; ++i) {
            const uint32_t* words = words_of(i);
            const int rows = has_residual(first_layer + i) ? R : 0;
            const uint32_t* skip = resident(words + p.product_at + rows + S + rows * row, S * row);
            const uint32_t* past = resident(words + p.taps_at, (p.kernel_size - 1) * tap);
            const uint32_t* cond = resident(words + p.cond_at, int64_t{G2} * T::words(p.cond_channels));
            if (threadIdx.x == 0) b.layers[i].skip = skip, b.layers[i].past = past, b.layers[i].cond = cond;
        }
    }

    __device__ void hold_weights() {
#pragma unroll
        for (int i = 0; i < Size::gates; ++i) {
            if (i >= layers) continue;
            const Layer layer = b.layers[i];
            filters[i].load(gate_panel(layer.current, 2 * warp));
            gates[i].load(gate_panel(layer.current, 2 * warp + 1));
            if constexpr (Size::residuals > 0)
                if (i < Size::residuals && has_residual(first_layer + i) && warp < Size::residual / panel)
                    residuals[i].load(product_panel(layer.residual, warp));
        }
    }

    using Memory = InMemory<Size::unroll>;

    __device__ Memory gate_panel(const uint32_t* matrix, int index) const {
        const int words = T::words(residual());
        return {matrix + int64_t{index} * words * panel, words};
    }
    __device__ Memory product_panel(const uint32_t* matrix, int index) const {
        const int words = T::words(gate());
        return {matrix + int64_t{index} * words * panel, words};
    }

    // ---- state: the CPU op's own (fastwave/ops/wavenet_sample.py), and rings while the launch runs ------------------

    // value(row, column, channel), of all columns and of the layers' channels.
    template <class Each>
    __device__ void for_elements(int channels, const Each& each) {
        for (int i = threadIdx.x; i < columns * channels; i += blockDim.x) each(i / channels, i % channels);
    }

    __device__ void load_state() {
        for (int i = threadIdx.x; i < p.groups * columns * p.front_width; i += blockDim.x) b.inputs[i] = 0.f;
        for (int group = 0; group < groups; ++group)
            for (int l = 0; l < layers; ++l) {
                const Layer& layer = b.layers[l];
                for (int i = 0; i < layer.reach; ++i)
                    for_elements(residual(), [&](int column, int channel) {
                        const float* from = p.state + row_of(group, column) * p.state_size + layer.state_at;
                        ring_at(layer, group, i, column)[channel] =
                            is_row(group, column) ? from[int64_t{i} * residual() + channel] : 0.f;
                    });
            }
    }

    __device__ void save_state() {
        for (int group = 0; group < groups; ++group) {
            for (int l = 0; l < layers; ++l) {
                const Layer& layer = b.layers[l];
                for (int i = 0; i < layer.reach; ++i)
                    for_elements(residual(), [&](int column, int channel) {
                        if (!is_row(group, column)) return;
                        const int64_t row = row_of(group, column);
                        const int place = (i + steps_of(row) % layer.reach) % layer.reach;
                        p.state[row * p.state_size + layer.state_at + int64_t{i} * residual() + channel] =
                            ring_at(layer, group, place, column)[channel];
                    });
            }
            if (stage > 0) continue;
            for_elements(p.in_channels, [&](int column, int channel) {
                if (!is_row(group, column)) return;
                const int64_t row = row_of(group, column);
                float* window = p.state + row * p.state_size;
                const int done = steps_of(row);
                for (int i = 0; i < p.front_width; ++i) {  // one thread moves a channel, the oldest tap first
                    const int n = done - p.front_width + i;
                    float value;
                    if (n < 0)
                        value = window[int64_t{i + done} * p.in_channels + channel];
                    else if (p.in_channels == 1)
                        value = input_at(group, column, n);
                    else
                        value = static_cast<float>(static_cast<int>(input_at(group, column, n)) == channel);
                    window[int64_t{i} * p.in_channels + channel] = value;
                }
            });
        }
    }

    // ---- the front --------------------------------------------------------------------------------------------------

    // Sample n of this launch (or its class), of the last front_width ones.
    __device__ float& input_at(int group, int column, int n) const {
        return b.inputs[(int64_t{group} * columns + column) * p.front_width + n % p.front_width];
    }

    // sum + tap j of the front for step n. What lies before this launch is in the state, as it is.
    __device__ float add_front_tap(float sum, int group, int column, int channel, int n, int j) const {
        const float* weights = reinterpret_cast<const float*>(p.front) + padded_rows(residual());
        const int64_t depth = int64_t{p.front_width} * p.in_channels;
        const float* tap = weights + (channel / panel * depth + int64_t{j} * p.in_channels) * panel + channel % panel;
        const int m = n - p.front_width + j;
        if (m < 0) {
            if (!is_row(group, column)) return sum;
            const float* window = p.state + row_of(group, column) * p.state_size + int64_t{n + j} * p.in_channels;
            for (int i = 0; i < p.in_channels; ++i)
                if (window[i] != 0.f) sum = fmaf(tap[i * panel], window[i], sum);
            return sum;
        }
        const float input = input_at(group, column, m);
        if (p.in_channels == 1) return fmaf(tap[0], input, sum);
        return sum + tap[static_cast<int>(input) * panel];
    }

    // h, and h as the products read it.
    __device__ void front(int group, int n) {
        const int R = padded_rows(residual());
        float *h = h_of(group), *known = b.front + int64_t{group} * b.front_words;
        uint32_t* x = x_of(group);
        for_elements(R / 2, [&](int column, int pair) {
            float value[2];
            for (int i = 0; i < 2; ++i) {
                const int channel = 2 * pair + i;
                value[i] = add_front_tap(known[column * R + channel], group, column, channel, n, p.front_width - 1);
                if (p.front_relu && value[i] < 0.f) value[i] = 0.f;
                h[column * R + channel] = value[i];
            }
            T::store(x + column * x_stride(), 2 * pair, value[0], value[1]);
        });
        __syncthreads();
    }

    __device__ bool receive_sample(int group, int n) {
        if (!hop.receive(sample_message, group, n - 1, sample_of(group))) return false;
        for (int column = threadIdx.x; column < columns; column += blockDim.x)
            if (is_row(group, column) && n - 1 < steps_of(row_of(group, column)))
                input_at(group, column, n - 1) = __uint_as_float(sample_of(group)[column]);
        __syncthreads();
        return true;
    }

    // ---- the layers, on the way of a sample -------------------------------------------------------------------------

    template <class Source>
    __device__ void gate_unit(int group, int layer, int unit, const Source& filter_panel, const Source& gate_panel) {
        const Fragment* known = ahead_of(group, layer, unit);
        Fragment filter = known[0], gate = known[1];
        const int words = T::words(residual());
        T::template multiply<columns>(filter, filter_panel, words, x_of(group), x_stride());
        T::template multiply<columns>(gate, gate_panel, words, x_of(group), x_stride());
        uint32_t* z = b.z + int64_t{layer} * columns * z_stride();
        for (int i = 0; i < 2; ++i) {
            const int column = 2 * lane_quad() + i;
            if (column < columns)
                T::store(z + column * z_stride(), panel * unit + 2 * lane_group(),
                         gated(filter.value[0][i], gate.value[0][i]), gated(filter.value[1][i], gate.value[1][i]));
        }
    }

    template <class Source>
    __device__ void residual_unit(int group, int layer, int unit, const Source& source) {
        const int R = padded_rows(residual()), channel = panel * unit + 2 * lane_group();
        Fragment sum = bias_fragment(b.layers[layer].residual_bias, unit);
        T::template multiply<columns>(sum, source, T::words(gate()), b.z + int64_t{layer} * columns * z_stride(),
                                      z_stride());
        for (int i = 0; i < 2; ++i) {
            const int column = 2 * lane_quad() + i;
            if (column >= columns) continue;
            float* h = h_of(group) + column * R + channel;
            h[0] = (sum.value[0][i] + h[0]) * p.residual_scale;
            h[1] = (sum.value[1][i] + h[1]) * p.residual_scale;
            T::store(x_of(group) + column * x_stride(), channel, h[0], h[1]);
        }
    }

    __device__ static Fragment bias_fragment(const float* bias, int unit) {
        const float* at = bias + unit * panel + 2 * lane_group();
        return {{{at[0], at[0]}, {at[1], at[1]}}};
    }

    // The layer's input stays in its ring, of rows that have not ended.
    __device__ void remember(int group, const Layer& layer, int n) {
        if (layer.reach == 0) return;
        const int R = padded_rows(residual()), place = n % layer.reach;
        for_elements(residual(), [&](int column, int channel) {
            if (is_row(group, column) && n < steps_of(row_of(group, column)))
                ring_at(layer, group, place, column)[channel] = h_of(group)[column * R + channel];
        });
    }

    // h <- the layer's output; behind a barrier, as it is left.
    template <class Gate, class Residual>
    __device__ void run_layer(int group, int layer, int n, const Gate& gate, const Residual& residual) {
        gate();
        remember(group, b.layers[layer], n);
        __syncthreads();
        if (has_residual(first_layer + layer)) residual();
        __syncthreads();
    }

    __device__ void run_layers(int group, int n) {
        const int residual_panels = padded_rows(residual()) / panel;
        auto from_memory = [&](int layer) {
            for (int unit = warp; unit < residual_panels; unit += warps)
                residual_unit(group, layer, unit, product_panel(b.layers[layer].residual, unit));
        };
#pragma unroll
        for (int i = 0; i < Size::gates; ++i) {
            if (i >= layers) continue;
            run_layer(
                group, i, n, [&] { gate_unit(group, i, warp, filters[i], gates[i]); },
                [&] {
                    if constexpr (Size::residuals > 0)
                        if (i < Size::residuals) {
                            if (warp < Size::residual / panel) residual_unit(group, i, warp, residuals[i]);
                            return;
                        }
                    from_memory(i);
                });
        }
        for (int i = Size::gates; i < layers; ++i)
            run_layer(
                group, i, n,
                [&] {
                    const uint32_t* current = b.layers[i].current;
                    for (int unit = warp; unit < b.units; unit += warps)
                        gate_unit(group, i, unit, gate_panel(current, 2 * unit), gate_panel(current, 2 * unit + 1));
                },
                [&] { from_memory(i); });
    }

    __device__ bool step(int group, int n) {
        if (stage == 0) {
            if (n > 0) {
                if (!receive_sample(group, n)) return false;
            }
            front(group, n);
        } else if (reads_residual(stage)) {
            if (!hop.receive(residual_message, group, n, message(group))) return false;
        }
        run_layers(group, n);
        if (!last_stage() && reads_residual(stage + 1)) hop.send(stage + 1, residual_message, group, n, message(group));
        if (p.skip && !add_skip(group, n)) return false;
        if (last_stage()) draw_samples(group, n);
        if (n + 1 < p.steps) look_ahead(group, n + 1);
        return true;
    }

    // ---- behind the message -----------------------------------------------------------------------------------------

    __device__ bool add_skip(int group, int n) {
        if (stage > 0) {
            if (!hop.receive(skip_message, group, n, skip_of(group))) return false;
        }
        const int S = padded_rows(p.skip);
        float* sum = reinterpret_cast<float*>(skip_of(group));
        for (int layer = 0; layer < layers; ++layer) {
            const bool first = first_layer + layer == 0;
            for (int unit = warp; unit < S / panel; unit += warps) {
                Fragment skip = bias_fragment(b.layers[layer].skip_bias, unit);
                T::template multiply<columns>(skip, product_panel(b.layers[layer].skip, unit), T::words(gate()),
                                              b.z + int64_t{layer} * columns * z_stride(), z_stride());
                for (int i = 0; i < 2; ++i) {
                    const int column = 2 * lane_quad() + i;
                    if (column >= columns) continue;
                    float* at = sum + column * S + panel * unit + 2 * lane_group();
                    at[0] = first ? skip.value[0][i] : skip.value[0][i] + at[0];
                    at[1] = first ? skip.value[1][i] : skip.value[1][i] + at[1];
                }
            }
        }
        __syncthreads();
        if (!last_stage()) hop.send(stage + 1, skip_message, group, n, skip_of(group));
        return true;
    }

    // What is known of the front's output and the layers' pre-activations of step n before its input.
    __device__ void look_ahead(int group, int n) {
        if (stage == 0) {
            const int R = padded_rows(residual());
            float* known = b.front + int64_t{group} * b.front_words;
            for_elements(R, [&](int column, int channel) {
                float sum = reinterpret_cast<const float*>(p.front)[channel];
                for (int j = 0; j + 1 < p.front_width; ++j) sum = add_front_tap(sum, group, column, channel, n, j);
                known[column * R + channel] = sum;
            });
        }
        for (int layer = 0; layer < layers; ++layer) {
            __syncthreads();  // the layer before has read `past`
            load_past(group, b.layers[layer], n);
            __syncthreads();
            for (int unit = warp; unit < b.units; unit += warps) look_ahead(group, layer, unit);
        }
        __syncthreads();
    }

    // c, then h at each past tap.
    __device__ void load_past(int group, const Layer& layer, int n) {
        uint32_t* to = b.past;
        auto fill = [&](int channels, const auto& value) {
            for_elements(padded_rows(channels) / 2, [&](int column, int pair) {
                const int channel = 2 * pair;
                const bool row = is_row(group, column);
                T::store(to + column * b.past_stride, channel, row && channel < channels ? value(column, channel) : 0.f,
                         row && channel + 1 < channels ? value(column, channel + 1) : 0.f);
            });
            to += columns * b.past_stride;
        };
        if (p.cond_channels) {
            const int64_t key = (int64_t{p.start} + n) / p.cond_repeat;
            fill(p.cond_channels, [&](int column, int channel) {
                return p.c[(row_of(group, column) * p.cond_channels + channel) * p.cond_time + key];
            });
        }
        for (int j = 0; j + 1 < p.kernel_size; ++j) {
            const int lag = (p.kernel_size - 1 - j) * layer.dilation;
            const int place = (n % layer.reach + layer.reach - lag) % layer.reach;
            fill(residual(), [&](int column, int channel) { return ring_at(layer, group, place, column)[channel]; });
        }
    }

    __device__ void look_ahead(int group, int layer_index, int unit) {
        const Layer& layer = b.layers[layer_index];
        const int G = gate();
        for (int half = 0; half < 2; ++half) {  // filter, gate
            const int index = 2 * unit + half;
            Fragment sum = bias_fragment(layer.bias, index);
            if (p.g)
                for (int row = 0; row < 2; ++row)
                    for (int i = 0; i < 2; ++i) {
                        const int channel = panel * unit + 2 * lane_group() + row, column = 2 * lane_quad() + i;
                        if (channel < G && column < columns && is_row(group, column))
                            sum.value[row][i] +=
                                p.g[(row_of(group, column) * p.layers + first_layer + layer_index) * 2 * G + half * G +
                                    channel];
                    }
            const uint32_t* x = b.past;
            if (p.cond_channels) {
                const int words = T::words(p.cond_channels);
                T::template multiply<columns>(sum, Memory{layer.cond + int64_t{index} * words * panel, words}, words, x,
                                              b.past_stride);
                x += columns * b.past_stride;
            }
            const int words = T::words(residual());
            const int64_t tap = int64_t{2} * b.units * words * panel;
            for (int j = 0; j + 1 < p.kernel_size; ++j) {
                T::template multiply<columns>(sum, gate_panel(layer.past + j * tap, index), words, x, b.past_stride);
                x += columns * b.past_stride;
            }
            ahead_of(group, layer_index, unit)[half] = sum;
        }
    }

    // ---- the head ---------------------------------------------------------------------------------------------------

    __device__ void draw_samples(int group, int n) {
        int depth = p.skip ? p.skip : residual();
        const int body = padded_rows(depth);
        const float* from = p.skip ? reinterpret_cast<const float*>(skip_of(group)) : h_of(group);
        uint32_t *in = b.heads[0], *out = b.heads[1];
        for_elements(body, [&](int column, int channel) {
            const float value = from[column * body + channel];
            in[column * b.head_stride + channel] = __float_as_uint(p.head_relu[0] && value < 0.f ? 0.f : value);
        });
        __syncthreads();
        const uint32_t* weights = head;
        for (int i = 0; i < p.heads; ++i) {
            const int rows = p.head_channels[i];
            const bool relu = i + 1 < p.heads && p.head_relu[i + 1];
            const uint32_t* matrix = weights + padded_rows(rows);
            for (int unit = warp; unit < padded_rows(rows) / panel; unit += warps) {
                Fragment sum = bias_fragment(reinterpret_cast<const float*>(weights), unit);
                Float32::multiply<columns>(sum, Memory{matrix + int64_t{unit} * depth * panel, depth}, depth, in,
                                           b.head_stride);
                for (int j = 0; j < 2; ++j) {
                    const int column = 2 * lane_quad() + j;
                    if (column >= columns) continue;
                    const float first = sum.value[0][j], second = sum.value[1][j];
                    Float32::store(out + column * b.head_stride, panel * unit + 2 * lane_group(),
                                   relu && first < 0.f ? 0.f : first, relu && second < 0.f ? 0.f : second);
                }
            }
            __syncthreads();
            weights = matrix + int64_t{padded_rows(rows)} * depth;
            depth = rows;
            uint32_t* swapped = in;
            in = out;
            out = swapped;
        }
        const int64_t t = int64_t{p.start} + n;
        for (int column = threadIdx.x; column < columns; column += blockDim.x)
            sample_of(group)[column] = __float_as_uint(
                is_row(group, column) ? draw_sample(row_of(group, column), t, n,
                                                    reinterpret_cast<float*>(in) + column * b.head_stride, depth)
                                      : 0.f);
        if (p.parameters)
            for_elements(depth, [&](int column, int i) {
                if (!is_row(group, column)) return;
                const int64_t row = row_of(group, column);
                p.parameters[(row * depth + i) * p.time + t] =
                    n < steps_of(row) ? __uint_as_float(in[column * b.head_stride + i]) : 0.f;
            });
        __syncthreads();
        hop.send(0, sample_message, group, n, sample_of(group));
    }

    // Draws the sample, or takes the forced one; what the first stage is told of it.
    __device__ float draw_sample(int64_t row, int64_t t, int n, const float* parameters, int count) {
        const float* noise = p.noise + row * p.noise_channels * p.time + t;
        Draw x = {0.f, 0};
        if (t < p.forced_time) {
            x.value = p.forced[row * p.forced_time + t];
            if (p.in_channels > 1)  // the class whose amplitude is nearest
                for (int i = 1; i < count; ++i)
                    if (fabsf(x.value - p.table[i]) < fabsf(x.value - p.table[x.index])) x.index = i;
        } else {
            x = draw(
                p.distribution, count, p.temperature, p.log_scale_min, p.clamp, p.table,
                [&](int64_t i) { return parameters[i]; }, [&](int64_t i) { return noise[i * p.time]; });
        }
        p.samples[row * p.time + t] = n < steps_of(row) ? x.value : 0.f;
        return p.in_channels > 1 ? static_cast<float>(x.index) : x.value;
    }

    const SamplerParams& p;
    const int stage, stages, pipeline, pipelines, warp, warps, first_layer, layers;
    int groups;
    Arena arena;
    const Buffers<T, columns>& b;
    Hop hop;
    const uint32_t* head;
    InRegisters<T::words(larger(Size::residual, 16))> filters[larger(Size::gates, 1)], gates[larger(Size::gates, 1)];
    InRegisters<T::words(larger(Size::gate, 16))> residuals[larger(Size::residuals, 1)];
};

template <class T, int columns, class Hop, class Size>
__global__ void __launch_bounds__(Size::threads, 1) sample(const __grid_constant__ SamplerParams p) {
    if constexpr (T::sm <= compiled_for && Hop::sm <= compiled_for) Sampler<T, columns, Hop, Size>(p).run();
}

}  // namespace fastwave::cuda
