// What both extension modules take of a gated stack from Python: its shape, and the arguments of wavenet_sample.
#pragma once

#include <pybind11/stl.h>

#include <algorithm>
#include <initializer_list>
#include <string>
#include <vector>

#include "bind.h"
#include "params.h"

namespace fastwave {

using Integers = std::vector<int64_t>;

inline constexpr int64_t largest = int64_t{1} << 24;  // of any size in a shape; channels and taps have less, see below

template <class T>
T field(const py::dict& spec, const char* name, const char* expected) {
    const py::object value = spec[name];
    try {
        return py::cast<T>(value);
    } catch (const py::cast_error&) {
        const auto type = py::cast<std::string>(py::type::of(value).attr("__name__"));
        throw py::type_error(std::string(name) + " must be " + expected + ", got " + type);
    }
}

inline bool boolean(const py::dict& spec, const char* name) { return field<bool>(spec, name, "a bool"); }
inline float number(const py::dict& spec, const char* name) { return field<float>(spec, name, "a float"); }
inline Integers list(const py::dict& spec, const char* name) {
    return field<Integers>(spec, name, "a list of integers");
}

inline int64_t integer(const py::dict& spec, const char* name, int64_t least, int64_t most = largest) {
    const auto value = field<int64_t>(spec, name, "a 64-bit integer");
    const std::string range = "between " + std::to_string(least) + " and " + std::to_string(most);
    if (value < least || value > most) fail(name, range.c_str(), value);
    return value;
}

inline Integers integers(const py::dict& spec, const char* name, int64_t least, int64_t most_entries) {
    Integers values = list(spec, name);
    const std::string size = "a list of at most " + std::to_string(most_entries) + " integers";
    if (static_cast<int64_t>(values.size()) > most_entries)
        fail(name, size.c_str(), static_cast<long long>(values.size()));
    for (int64_t value : values)
        if (value < least || value > largest) fail(name, "a list of positive integers", value);
    return values;
}

template <class Enum>
Enum choice(const py::dict& spec, const char* name, std::initializer_list<const char*> names) {
    const auto value = field<std::string>(spec, name, "a string");
    int index = 0;
    std::string listed;
    for (const char* candidate : names) {
        if (value == candidate) return static_cast<Enum>(index);
        listed += (index++ ? ", " : "one of ") + std::string(candidate);
    }
    fail(name, listed.c_str(), value.c_str());
}

inline constexpr std::initializer_list<const char*> dtypes = {"float32", "bfloat16", "int8"};  // in the order of Dtype

// A StackShape with the arrays that it points to, from the fields of a GatedStackSpec.
struct Shape : StackShape {
    Integers dilation_list, head_list, relu_list;

    explicit Shape(const py::dict& spec) {
        dtype = choice<Dtype>(spec, "dtype", dtypes);
        in_channels = integer(spec, "in_channels", 1, 1 << 16);
        front_width = integer(spec, "front_width", 1, 1 << 16);
        front_causal = boolean(spec, "front_causal");
        front_relu = boolean(spec, "front_relu");
        residual = integer(spec, "residual_channels", 1, 1 << 16);
        gate = integer(spec, "gate_channels", 1, 1 << 16);
        skip = integer(spec, "skip_channels", 0, 1 << 16);
        kernel_size = integer(spec, "kernel_size", 1, max_taps);
        dilation_list = integers(spec, "dilations", 1, max_layers);
        layers = static_cast<int64_t>(dilation_list.size());
        causal = boolean(spec, "causal");
        residual_scale = number(spec, "residual_scale");
        cond_channels = integer(spec, "cond_channels", 0, 1 << 16);
        cond_repeat = integer(spec, "cond_repeat", 1);
        cond_taps = integer(spec, "cond_taps", 1, max_taps);
        if (cond_taps % 2 == 0) fail("cond_taps", "odd", cond_taps);
        if (cond_taps > 1 && !cond_channels) fail("cond_taps", "1 without conditioning", cond_taps);
        separable = boolean(spec, "separable");
        head_list = integers(spec, "head_channels", 1, 64);
        heads = static_cast<int64_t>(head_list.size());
        for (bool relu : field<std::vector<bool>>(spec, "head_relu", "a list of bools")) relu_list.push_back(relu);
        if (relu_list.size() != head_list.size())
            fail("head_relu", "as long as head_channels", static_cast<long long>(relu_list.size()));
        epilogue = choice<Epilogue>(spec, "epilogue", {"none", "affine", "inverse"});
        mu_first = choice<int>(spec, "epilogue_order", {"log_sigma", "mu"}) == 1;
        delay = choice<Delay>(spec, "delay", {"none", "input", "output"});
        if (!front_causal && front_width % 2 == 0) fail("front_width", "odd in a centred front", front_width);
        if (!causal && kernel_size % 2 == 0) fail("kernel_size", "odd in a centred stack", kernel_size);
        if (delay == Delay::output && epilogue == Epilogue::none) fail("delay", "'none' or 'input'", "output");
        if (layers == 0 && skip > 0) fail("skip_channels", "0 in a stack without layers", skip);
        dilations = dilation_list.data();
        head_channels = head_list.data();
        head_relu = relu_list.data();
        if (epilogue != Epilogue::none && parameters() % 2)
            fail("head_channels", "even at its end for a flow", parameters());
    }
    Shape(const Shape&) = delete;
};

inline void require_weights(const Tensor& weights, const StackShape& s, On on = {}) {
    const int64_t words = packed_size(s);
    if (s.dtype == Dtype::float32) require(weights, "weights", float32, {words}, on);
    if (s.dtype == Dtype::bfloat16) require(weights, "weights", bfloat16, {2 * words}, on);
    if (s.dtype == Dtype::int8) require(weights, "weights", int8, {4 * words}, on);
}

inline int64_t columns_of_c(const StackShape& s, int64_t time) { return (time + s.cond_repeat - 1) / s.cond_repeat; }

// Channels of a column of c that are neighbours in one band: there may be a fourth dimension of them.
inline int64_t group_of(const Tensor& c) { return c && c.ndim() == 4 ? c.size(3) : 1; }

// c of so many columns, (batch, channels, columns), or if `grouped` also (batch, channels / group, columns, group).
inline void require_columns(const StackShape& s, const Tensor& c, int64_t batch, int64_t columns, bool grouped,
                            On on = {}) {
    const int64_t group = group_of(c);
    if (grouped && c && c.ndim() == 4 && group > 0 && s.cond_channels % group == 0)
        require(c, "c", float32, {batch, s.cond_channels / group, columns, group}, on);
    else
        require(c, "c", float32, {batch, s.cond_channels, columns}, on);
}

// c for `time` columns to come, and for `pending` ones before them.
inline void require_conditioning(const StackShape& s, const Tensor& c, int64_t batch, int64_t time, int64_t pending,
                                 bool grouped, On on = {}) {
    if (!s.cond_channels) {
        if (c) fail("c", "None: the stack has no conditioning", c.describe().c_str());
        return;
    }
    const int64_t columns = columns_of_c(s, time) + columns_of_c(s, pending) + s.cond_taps - 1;
    require_columns(s, c, batch, columns, grouped, on);
}

// Panels of what `project` makes of a column of c.
inline int64_t panels_projected(const StackShape& s) { return s.layers * s.gate_rows() / panel; }

// The arguments of a call of gated_stack, checked but for what `lengths` holds, and in `params` those of the first row.
// Of `params` length, workspace and team are left to fill.
struct StackCall {
    Shape shape;
    Tensor x, weights, c, projected, interpolation, g, u, y, lengths, state, out;
    int64_t batch, columns;  // columns: those that are pending, and the new ones
    GatedStackParams params{};

    StackCall(const py::dict& spec, py::handle x_, py::handle weights_, py::handle c_, py::handle projected_,
              py::handle interpolation_, py::handle g_, py::handle u_, py::handle y_, py::handle lengths_,
              py::handle state_, py::handle out_, bool reverse, int64_t pending, bool last, On on = {})
        : shape(spec),
          x(take(x_, "x")),
          weights(take(weights_, "weights")),
          c(take(c_, "c")),
          projected(take(projected_, "projected")),
          interpolation(take(interpolation_, "interpolation")),
          g(take(g_, "g")),
          u(take(u_, "u")),
          y(take(y_, "y")),
          lengths(take(lengths_, "lengths")),
          state(take(state_, "state")),
          out(take(out_, "out")) {
        require(x, "x", float32, {any, shape.in_channels, any}, on);
        batch = x.size(0);
        const int64_t time = x.size(2), look_ahead = shape.look_ahead();
        if (pending < 0 || pending > look_ahead)
            fail("pending", ("between 0 and " + std::to_string(look_ahead)).c_str(), pending);
        if (!state && (pending > 0 || (!last && look_ahead > 0)))
            fail("state", "a tensor, to hold what is pending", "None");
        columns = pending + time;
        const int64_t out_time = std::max(int64_t{0}, columns - (last ? 0 : look_ahead));
        require_weights(weights, shape, on);
        if (projected) {
            if (c) fail("c", "None: it is projected already", c.describe().c_str());
            if (g) fail("g", "None: it is in what is projected", g.describe().c_str());
            if (!shape.cond_channels || shape.cond_taps > 1)
                fail("projected", "None without c, and where it is interpolated", projected.describe().c_str());
            const int64_t frames = columns_of_c(shape, time) + columns_of_c(shape, pending);
            require(projected, "projected", float32, {batch, panels_projected(shape), frames, panel},
                    {on.device, false});
            if (frames && (projected.stride(3) != 1 || (frames > 1 && projected.stride(2) != panel)))
                fail("projected", "columns, one behind another, of what project made", projected.describe().c_str());
            params.panel_stride = projected.stride(1);
        } else {
            require_conditioning(shape, c, batch, time, pending, on.device == dlpack::kCPU, on);
        }
        if (shape.cond_taps > 1)
            require(interpolation, "interpolation", float32, {batch, columns, shape.cond_taps}, on);
        else if (interpolation)
            fail("interpolation", "None where cond_taps is 1", "a tensor");
        if (g) require(g, "g", float32, {batch, shape.layers, 2 * shape.gate}, on);
        if (u) require(u, "u", float32, {batch, shape.layers, shape.residual}, on);
        if (y) require(y, "y", float32, {batch, shape.out_channels(), out_time}, on);
        if (!y && shape.epilogue != Epilogue::none) {
            if (shape.out_channels() != shape.in_channels)
                fail("y", "given where x does not have the output's channels", "None");
            if (state && look_ahead > 0) fail("y", "given where the output lies behind x", "None");
        }
        if (state) {
            if (reverse) fail("state", "None when running backwards", "a tensor");
            require(state, "state", float32, {batch, shape.state_size()}, on);
        }
        if (reverse && interpolation) fail("interpolation", "None when running backwards", "a tensor");
        require(out, "out", float32, {batch, shape.out_channels(), out_time}, on);

        params.shape = shape;
        params.weights = weights.data<float>();
        params.x = x.data<float>(), params.c = c.data<float>(), params.projected = projected.data<float>();
        params.interpolation = interpolation.data<float>();
        params.g = g.data<float>(), params.u = u.data<float>(), params.y = y.data<float>();
        params.state = state.data<float>(), params.out = out.data<float>();
        params.time = time;
        params.cond_time = c ? c.size(2) : 0;
        params.cond_group = group_of(c);
        params.out_time = out_time;
        params.pending = pending;
        params.last = last;
        params.reverse = reverse;
    }
};

// Of what a gated stack can be, a sampler takes this.
inline void require_sampler(const StackShape& shape) {
    if (!shape.causal || !shape.front_causal) fail("causal", "True: a sampler cannot look ahead", "False");
    if (shape.epilogue != Epilogue::none) fail("epilogue", "'none' in a sampler", "a flow's");
    if (shape.delay != Delay::none)
        fail("delay", "'none': the sampler's stack reads x up to t - 1 by itself", "another");
    if (shape.separable) fail("separable", "False in a sampler", "True");
    if (shape.layers == 0) fail("dilations", "one or more in a sampler", "none");
    if (shape.heads == 0) fail("head_channels", "one or more in a sampler", "none");
    if (shape.cond_taps != 1) fail("cond_taps", "1 in a sampler", shape.cond_taps);
}

// The arguments of a call of wavenet_sample, checked but for what `lengths` holds. Of `params` the workspace and the
// team are left to fill.
struct SamplerCall {
    Shape shape;
    Tensor noise, weights, c, g, table, forced, lengths, state, samples, parameters;
    WaveNetSampleParams params{};

    SamplerCall(const py::dict& spec, const py::dict& head, py::handle noise_, py::handle weights_, py::handle c_,
                py::handle g_, py::handle table_, py::handle forced_, py::handle lengths_, py::handle state_,
                py::handle samples_, py::handle parameters_, double temperature, On on = {})
        : shape(spec),
          noise(take(noise_, "noise")),
          weights(take(weights_, "weights")),
          c(take(c_, "c")),
          g(take(g_, "g")),
          table(take(table_, "table")),
          forced(take(forced_, "forced")),
          lengths(take(lengths_, "lengths")),
          state(take(state_, "state")),
          samples(take(samples_, "samples")),
          parameters(take(parameters_, "parameters")) {
        require_sampler(shape);
        params.distribution = choice<Distribution>(
            head, "distribution", {"gaussian", "mixture_of_gaussians", "mixture_of_logistics", "softmax"});
        params.log_scale_min = number(head, "log_scale_min");
        params.clamp = number(head, "clamp");
        params.temperature = static_cast<float>(temperature);
        if (!(params.clamp > 0)) fail("clamp", "positive", "another");
        if (!(temperature >= 0)) fail("temperature", "at least 0", "a negative one");
        const int64_t n = shape.parameters();
        const bool softmax = params.distribution == Distribution::softmax;
        const bool mixture = !softmax && params.distribution != Distribution::gaussian;
        if (params.distribution == Distribution::gaussian && n != 2)
            fail("head_channels", "2 at its end (Gaussian)", n);
        if (mixture && n % 3) fail("head_channels", "a multiple of 3 at its end (a mixture)", n);
        if (shape.in_channels > 1 && !(softmax && shape.in_channels == n))
            fail("in_channels", "1, or the number of classes of a softmax", shape.in_channels);

        const int64_t noise_channels = mixture ? n / 3 + 1 : 1;
        require(noise, "noise", float32, {any, noise_channels, any}, on);
        const int64_t batch = noise.size(0), time = noise.size(2);
        require_weights(weights, shape, on);
        require_conditioning(shape, c, batch, time, 0, false, on);
        if (g) require(g, "g", float32, {batch, shape.layers, 2 * shape.gate}, on);
        if (softmax) require(table, "table", float32, {n}, on);
        if (forced) {
            require(forced, "forced", float32, {batch, any}, on);
            if (forced.size(1) > time) fail("forced", "no longer than noise", forced.size(1));
        }
        const int64_t state_size = shape.state_size() + shape.in_channels;
        require(state, "state", float32, {batch, state_size}, on);
        require(samples, "samples", float32, {batch, time}, on);
        if (parameters) require(parameters, "parameters", float32, {batch, n, time}, on);

        params.shape = shape;
        params.weights = weights.data<float>();
        params.table = table.data<float>();
        params.noise = noise.data<float>(), params.c = c.data<float>(), params.g = g.data<float>();
        params.forced = forced.data<float>(), params.state = state.data<float>();
        params.samples = samples.data<float>(), params.parameters = parameters.data<float>();
        params.rows = batch;
        params.time = time;
        params.noise_channels = noise_channels;
        params.cond_time = c ? c.size(2) : 0;
        params.forced_time = forced ? forced.size(1) : 0;
        params.state_size = state_size;
    }
};

}  // namespace fastwave
