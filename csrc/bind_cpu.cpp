// The module fastwave._cpu: checks arguments, fills parameter structs, calls kernels. No arithmetic.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "bind.h"
#include "bind_stack.h"
#include "cpu/isa.h"
#include "cpu/threads.h"
#include "params.h"

namespace fastwave {

namespace {

// Valid columns per row: `lengths`, checked, or `time`.
Integers lengths_of(const Tensor& lengths, int64_t batch, int64_t time) {
    Integers all(batch, time);
    if (!lengths) return all;
    require(lengths, "lengths", int64, {batch});
    for (int64_t row = 0; row < batch; ++row) {
        all[row] = lengths.data<int64_t>()[row];
        if (all[row] < 0 || all[row] > time)
            fail("lengths", ("between 0 and " + std::to_string(time)).c_str(), all[row]);
    }
    return all;
}

// Threads for each of `count` things that run side by side: rows of a batch come first, then one row is split.
int64_t team_size(int64_t threads, int64_t count) {
    return std::clamp(threads / std::max(count, int64_t{1}), int64_t{1}, max_team);
}

// A buffer that each thread keeps from call to call.
float* workspace(int64_t floats) {
    struct Free {
        void operator()(float* data) const { ::operator delete[](data, std::align_val_t(64)); }
    };
    thread_local std::unique_ptr<float, Free> data;
    thread_local int64_t size = 0;
    if (floats > size) {
        data.reset();
        size = 0;  // what follows may throw
        data.reset(static_cast<float*>(::operator new[](floats * sizeof(float), std::align_val_t(64))));
        size = floats;
    }
    return data.get();
}

// Runs a kernel on each of `count` groups of rows, side by side, with the parameters that `fill` gives for a group and
// the number of threads that share it.
template <class Params, class Fill>
void run_groups(int64_t threads, int64_t count, void (*kernel)(const Params&), const Fill& fill) {
    const int64_t team = team_size(threads, count);
    Interrupt interrupt;
    interrupt.run([&] {
        share(
            threads, count,
            [&](int64_t index) {
                Helpers helpers(team);
                Params params = fill(index, helpers.size);
                params.team = helpers.size > 1 ? &helpers : nullptr;
                params.poll = &Interrupt::poll;
                params.poll_context = &interrupt;
                kernel(params);
            },
            [&] { Interrupt::poll(&interrupt); });
    });
}

// A row of a tensor that may be absent.
float* row_of(const Tensor& tensor, int64_t row) {
    return tensor ? tensor.data<float>() + row * tensor.stride(0) : nullptr;
}

void gated_stack(const py::dict& spec, py::object x_, py::object weights_, py::object c_, py::object projected_,
                 py::object interpolation_, py::object g_, py::object u_, py::object y_, py::object lengths_,
                 py::object state_, py::object out_, bool reverse, int64_t pending, bool last, int64_t threads) {
    const StackCall call(spec, x_, weights_, c_, projected_, interpolation_, g_, u_, y_, lengths_, state_, out_,
                         reverse, pending, last);
    if (threads < 1) fail("threads", "at least 1", threads);
    if (call.batch == 0 || call.columns == 0)
        return;  // of rows without samples there may be more than can be counted to
    const Integers valid = lengths_of(call.lengths, call.batch, call.columns);
    run_groups(threads, call.batch, kernels().gated_stack, [&](int64_t row, int64_t team) {
        GatedStackParams params = call.params;
        params.x = row_of(call.x, row), params.c = row_of(call.c, row), params.projected = row_of(call.projected, row);
        params.interpolation = row_of(call.interpolation, row);
        params.g = row_of(call.g, row), params.u = row_of(call.u, row), params.y = row_of(call.y, row);
        params.state = row_of(call.state, row), params.out = row_of(call.out, row);
        params.length = valid[row] - pending;
        params.workspace = workspace(kernels().gated_stack_workspace(call.shape, team));
        return params;
    });
}

void project(const py::dict& spec, py::object c_, py::object weights_, py::object g_, py::object out_,
             int64_t threads) {
    const Shape shape(spec);
    const Tensor c = take(c_, "c"), weights = take(weights_, "weights"), g = take(g_, "g"), out = take(out_, "out");
    if (!shape.cond_channels) fail("cond_channels", "at least 1 to project", shape.cond_channels);
    require_columns(shape, c, any, any, true);
    const int64_t batch = c.size(0), columns = c.size(2);
    require_weights(weights, shape);
    if (g) require(g, "g", float32, {batch, shape.layers, 2 * shape.gate});
    require(out, "out", float32, {batch, panels_projected(shape), columns, panel});
    if (threads < 1) fail("threads", "at least 1", threads);
    if (batch == 0 || columns == 0) return;
    run_groups(threads, batch, kernels().project, [&](int64_t row, int64_t) {
        ProjectParams params{};
        params.shape = shape;
        params.weights = weights.data<float>();
        params.c = row_of(c, row), params.g = row_of(g, row), params.out = row_of(out, row);
        params.cond_time = columns, params.cond_group = group_of(c);
        params.workspace = workspace(kernels().project_workspace(shape));
        return params;
    });
}

void wavenet_sample(const py::dict& spec, const py::dict& head, py::object noise_, py::object weights_, py::object c_,
                    py::object g_, py::object table_, py::object forced_, py::object lengths_, py::object state_,
                    py::object samples_, py::object parameters_, double temperature, int64_t threads) {
    const SamplerCall call(spec, head, noise_, weights_, c_, g_, table_, forced_, lengths_, state_, samples_,
                           parameters_, temperature);
    if (threads < 1) fail("threads", "at least 1", threads);
    const int64_t batch = call.params.rows, time = call.params.time, n = call.shape.parameters();
    const Integers valid = lengths_of(call.lengths, batch, time);
    if (call.samples.numel() == 0) return;

    // Threads first: a group of rows shares the weights it reads, but only within its thread.
    const int64_t group = std::clamp((batch - 1) / threads + 1, int64_t{1}, max_rows);
    run_groups(threads, (batch + group - 1) / group, kernels().wavenet_sample, [&](int64_t index, int64_t) {
        const int64_t row = index * group;
        WaveNetSampleParams mine = call.params;
        mine.rows = std::min(group, batch - row);
        mine.noise = row_of(call.noise, row), mine.c = row_of(call.c, row), mine.g = row_of(call.g, row);
        mine.forced = row_of(call.forced, row), mine.state = row_of(call.state, row);
        mine.samples = row_of(call.samples, row), mine.parameters = row_of(call.parameters, row);
        mine.lengths = valid.data() + row;
        std::fill_n(mine.samples, mine.rows * time, 0.f);
        if (mine.parameters) std::fill_n(mine.parameters, mine.rows * n * time, 0.f);
        mine.workspace = workspace(kernels().wavenet_sample_workspace(call.shape, mine.rows));
        return mine;
    });
}

void upsample(const py::dict& spec, py::object mel_, py::object weights_, py::object out_, int64_t skip,
              int64_t threads) {
    const Tensor mel = take(mel_, "mel"), weights = take(weights_, "weights"), out = take(out_, "out");
    UpsampleParams params{};
    const Integers scales = list(spec, "scales");
    if (scales.size() > 32) fail("scales", "a list of at most 32 integers", static_cast<long long>(scales.size()));
    params.n_mels = integer(spec, "n_mels", 1, 1 << 16);
    params.stages = static_cast<int64_t>(scales.size());
    params.scales = scales.data();
    params.freq_kernel = integer(spec, "freq_kernel", 1, 1 << 16);
    if (params.freq_kernel % 2 == 0) fail("freq_kernel", "odd", params.freq_kernel);
    params.slope = number(spec, "slope");
    params.context = integer(spec, "context", 0, 1 << 16);
    params.context_conv = boolean(spec, "context_conv");
    params.causal = boolean(spec, "causal");
    int64_t rate = 1, size = 0;
    for (int64_t scale : scales) {
        if (scale < 1 || scale > (1 << 16)) fail("scales", "a list of positive integers", scale);
        rate *= scale;
        if (rate > largest) fail("scales", "a list with a product of at most 2^24", rate);
        size += 1 + params.freq_kernel * 3 * scale;
    }
    if (params.context_conv) size += params.n_mels * params.n_mels * (2 * params.context + 1);
    require(weights, "weights", float32, {size});
    require(mel, "mel", float32, {any, params.n_mels, any});
    params.frames = mel.size(2);
    params.first = skip;
    require(out, "out", float32, {mel.size(0), params.n_mels, any});
    params.out_frames = out.size(2) / rate;
    if (out.size(2) % rate) fail("out", "a whole number of frames long", out.size(2));
    if (skip < 0 || skip > params.frames - 2 * params.context - params.out_frames)
        fail("skip", "such that skip + frames stays within mel's frames", skip);
    if (threads < 1) fail("threads", "at least 1", threads);
    if (out.numel() == 0) return;
    params.weights = weights.data<float>();
    Interrupt interrupt;
    interrupt.run([&] {
        share(
            threads, mel.size(0),
            [&](int64_t row) {
                UpsampleParams mine = params;
                mine.mel = mel.data<float>() + row * params.n_mels * params.frames;
                mine.out = out.data<float>() + row * params.n_mels * out.size(2);
                mine.workspace = workspace(kernels().upsample_workspace(mine));
                kernels().upsample(mine);
            },
            [&] { Interrupt::poll(&interrupt); });
    });
}

int64_t peak(int64_t rounds, const std::string& dtype) {
    py::dict options;
    options["dtype"] = dtype;
    const auto type = choice<Dtype>(options, "dtype", dtypes);
    float sink;
    py::gil_scoped_release released;
    return kernels().peak(rounds, type, &sink);
}

float read(py::object data_, int64_t times) {
    const Tensor data = take(data_, "data");
    require(data, "data", float32, {any});
    if (data.numel() % 128) fail("data", "a multiple of 128 long", data.numel());
    py::gil_scoped_release released;
    return kernels().read(data.data<float>(), data.numel(), times);
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "CPU kernels of fastwave.";

    m.def("isa", [] { return kernels().isa; }, "Name of the instruction set whose kernels run.");
    m.def("isas", &isas, "Names of the instruction sets that this machine can run, slowest first.");
    m.def("set_isa", &select_isa, py::arg("name"), "Run the kernels of this instruction set from now on.");

    using py::arg;
    m.def(
        "packed_size", [](const py::dict& spec) { return packed_size(Shape(spec)); }, arg("spec"),
        "Words of 32 bits of a stack's packed weights.");
    m.def("gated_stack", &gated_stack, arg("spec"), arg("x"), arg("weights"), arg("c"), arg("projected"),
          arg("interpolation"), arg("g"), arg("u"), arg("y"), arg("lengths"), arg("state"), arg("out"), arg("reverse"),
          arg("pending"), arg("last"), arg("threads"));
    m.def("project", &project, arg("spec"), arg("c"), arg("weights"), arg("g"), arg("out"), arg("threads"));
    m.def("wavenet_sample", &wavenet_sample, arg("spec"), arg("head"), arg("noise"), arg("weights"), arg("c"), arg("g"),
          arg("table"), arg("forced"), arg("lengths"), arg("state"), arg("samples"), arg("parameters"),
          arg("temperature"), arg("threads"));
    m.def("upsample", &upsample, arg("spec"), arg("mel"), arg("weights"), arg("out"), arg("skip"), arg("threads"));
    m.def("peak", &peak, arg("rounds"), arg("dtype"), "Runs multiply-adds on registers alone; returns how many.");
    m.def("read", &read, arg("data"), arg("times"), "Reads a tensor that many times over; returns the sum of it all.");
}

}  // namespace fastwave
