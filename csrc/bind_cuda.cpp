// The module fastwave._cuda: checks arguments, fills parameter structs, launches kernels. No arithmetic.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>
#include <utility>

#include "bind.h"
#include "bind_stack.h"
#include "cuda/kernels.h"

namespace fastwave {

namespace {

constexpr On on_cuda{.device = dlpack::kCUDA};

py::list devices() {
    py::list infos;
    for (const cuda::DeviceInfo& info : cuda::devices()) {
        py::dict entry;
        entry["name"] = info.name;
        entry["sm"] = info.sm;
        entry["sm_count"] = info.sm_count;
        entry["bytes"] = info.bytes;
        infos.append(entry);
    }
    return infos;
}

// Kernels read up to 16 bytes at once.
void require_aligned(const Tensor& tensor, const char* name) {
    const auto address = reinterpret_cast<std::uintptr_t>(tensor.data<const void>());
    if (address % 16) fail(name, "aligned to 16 bytes", static_cast<long long>(address % 16));
}

void require_dtype(const StackShape& shape) {
    if (shape.dtype == Dtype::int8) fail("dtype", "one of float32, bfloat16 on cuda", "int8");
}

constexpr int64_t longest = std::numeric_limits<int32_t>::max() - 1;  // columns are counted in 32 bits

void scale(py::object x_object, py::object y_object, float a, float b, std::uintptr_t stream) {
    Tensor x = take(x_object, "x"), y = take(y_object, "y");
    require(x, "x", float32, {any}, on_cuda);
    require(y, "y", float32, {x.size(0)}, on_cuda);
    require_same_device(y, "y", x, "x");
    cuda::scale({x.data<const float>(), y.data<float>(), x.numel(), a, b}, x.device().id,
                reinterpret_cast<cudaStream_t>(stream));
}

py::dict wavenet_sample_plan(const py::dict& spec, int64_t batch, int device) {
    const Shape shape(spec);
    require_sampler(shape);
    require_dtype(shape);
    if (batch < 1) fail("batch", "at least 1", batch);
    const cuda::SamplePlan plan = cuda::wavenet_sample_plan(shape, batch, device);
    py::dict entry;
    entry["kernel"] = plan.kernel;
    entry["general"] = plan.general;
    entry["stages"] = plan.stages;
    entry["pipelines"] = plan.pipelines;
    entry["workspace"] = plan.workspace;
    return entry;
}

void wavenet_sample(const py::dict& spec, const py::dict& head, py::object noise_, py::object weights_, py::object c_,
                    py::object g_, py::object table_, py::object forced_, py::object lengths_, py::object state_,
                    py::object samples_, py::object parameters_, py::object workspace_, double temperature,
                    std::uintptr_t stream) {
    SamplerCall call(spec, head, noise_, weights_, c_, g_, table_, forced_, lengths_, state_, samples_, parameters_,
                     temperature, on_cuda);
    require_dtype(call.shape);
    const int64_t batch = call.params.rows, time = call.params.time;
    if (time > longest) fail("noise", "shorter than 2^31 samples", time);
    if (call.lengths) require(call.lengths, "lengths", int64, {batch}, on_cuda);
    const Tensor workspace = take(workspace_, "workspace");
    const int device = call.noise.device().id;
    if (call.samples.numel() == 0) return;
    require(workspace, "workspace", float32, {cuda::wavenet_sample_plan(call.shape, batch, device).workspace / 4},
            on_cuda);
    const std::pair<const Tensor&, const char*> others[] = {{call.weights, "weights"},
                                                            {call.c, "c"},
                                                            {call.g, "g"},
                                                            {call.table, "table"},
                                                            {call.forced, "forced"},
                                                            {call.lengths, "lengths"},
                                                            {call.state, "state"},
                                                            {call.samples, "samples"},
                                                            {call.parameters, "parameters"},
                                                            {workspace, "workspace"}};
    for (const auto& [tensor, name] : others)
        if (tensor) require_same_device(tensor, name, call.noise, "noise");
    require_aligned(call.weights, "weights");
    require_aligned(workspace, "workspace");
    WaveNetSampleParams& params = call.params;
    params.lengths = call.lengths.data<const int64_t>();
    params.workspace = workspace.data<float>();
    Interrupt interrupt;
    params.poll = &Interrupt::poll;
    params.poll_context = &interrupt;
    interrupt.run([&] { cuda::wavenet_sample(params, device, reinterpret_cast<cudaStream_t>(stream)); });
}

// Tiles are counted in 32 bits, and a row's columns with what a centred stack runs on behind them.
void require_countable(const Shape& shape, int64_t batch, int64_t time) {
    int64_t reach = 0;
    for (int64_t l = 0; l < shape.layers; ++l) reach += shape.reach(l);
    if (time > longest / 2 - reach - shape.front_width - 1024)
        fail("x", "shorter than 2^30 columns, less what the layers reach", time);
    if (batch > longest / 16) fail("x", "of fewer than 2^27 rows", batch);
}

py::dict gated_stack_plan(const py::dict& spec, int64_t batch, int64_t time, int64_t cond_time, bool last, int device) {
    const Shape shape(spec);
    require_dtype(shape);
    if (batch < 1) fail("batch", "at least 1", batch);
    require_countable(shape, batch, time);
    GatedStackParams params{};
    params.shape = shape;
    params.time = time;
    params.cond_time = cond_time;
    params.last = last;
    const cuda::StackPlan plan = cuda::gated_stack_plan({params, batch, nullptr}, device);
    py::dict entry;
    entry["kernel"] = plan.kernel;
    entry["columns"] = plan.columns;
    entry["blocks"] = plan.blocks;
    entry["workspace"] = plan.workspace;
    return entry;
}

void gated_stack(const py::dict& spec, py::object x_, py::object weights_, py::object c_, py::object interpolation_,
                 py::object g_, py::object u_, py::object y_, py::object lengths_, py::object state_, py::object out_,
                 py::object workspace_, bool reverse, int64_t pending, bool last, std::uintptr_t stream) {
    StackCall call(spec, x_, weights_, c_, py::none(), interpolation_, g_, u_, y_, lengths_, state_, out_, reverse,
                   pending, last, on_cuda);
    require_dtype(call.shape);
    if (call.lengths) require(call.lengths, "lengths", int64, {call.batch}, on_cuda);
    const Tensor workspace = take(workspace_, "workspace");
    if (call.batch == 0 || call.columns == 0) return;
    require_countable(call.shape, call.batch, call.params.time);
    const int device = call.x.device().id;
    const cuda::StackBatch there{call.params, call.batch, call.lengths.data<const int64_t>()};
    require(workspace, "workspace", float32, {cuda::gated_stack_plan(there, device).workspace / 4}, on_cuda);
    const std::pair<const Tensor&, const char*> others[] = {{call.weights, "weights"},
                                                            {call.c, "c"},
                                                            {call.interpolation, "interpolation"},
                                                            {call.g, "g"},
                                                            {call.u, "u"},
                                                            {call.y, "y"},
                                                            {call.lengths, "lengths"},
                                                            {call.state, "state"},
                                                            {call.out, "out"},
                                                            {workspace, "workspace"}};
    for (const auto& [tensor, name] : others)
        if (tensor) require_same_device(tensor, name, call.x, "x");
    require_aligned(call.weights, "weights");
    require_aligned(workspace, "workspace");
    cuda::StackBatch run = there;
    run.tensors.workspace = workspace.data<float>();
    py::gil_scoped_release released;
    cuda::gated_stack(run, device, reinterpret_cast<cudaStream_t>(stream));
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "CUDA kernels of fastwave.";

    m.def("devices", &devices, "One dict (name, sm, sm_count, bytes) per CUDA device; empty without a driver.");
    using py::arg;
    m.def("gated_stack", &gated_stack, arg("spec"), arg("x"), arg("weights"), arg("c"), arg("interpolation"), arg("g"),
          arg("u"), arg("y"), arg("lengths"), arg("state"), arg("out"), arg("workspace"), arg("reverse"),
          arg("pending"), arg("last"), arg("stream"));
    m.def(
        "gated_stack_plan", &gated_stack_plan, arg("spec"), arg("batch"), arg("time"), arg("cond_time"), arg("last"),
        arg("device"),
        "How such a call runs, of `time` new columns: the kernel, columns of a tile, blocks, and bytes of workspace, a "
        "multiple of 16.");
    m.def("wavenet_sample", &wavenet_sample, arg("spec"), arg("head"), arg("noise"), arg("weights"), arg("c"), arg("g"),
          arg("table"), arg("forced"), arg("lengths"), arg("state"), arg("samples"), arg("parameters"),
          arg("workspace"), arg("temperature"), arg("stream"));
    m.def("wavenet_sample_plan", &wavenet_sample_plan, arg("spec"), arg("batch"), arg("device"),
          "How such a call runs: the kernel, whether it is the general one, blocks in a pipeline (stages), pipelines, "
          "and bytes of workspace, a "
          "multiple of 16.");
    m.def("scale", &scale, arg("x"), arg("y"), arg("a"), arg("b"), arg("stream"),
          "y = a x + b over (samples,) float32 tensors, on the CUDA stream with this handle.");
}

}  // namespace fastwave
