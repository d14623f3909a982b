// The module fastwave._cuda: checks arguments, fills parameter structs, launches kernels. No arithmetic.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "bind.h"
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

void scale(py::object x_object, py::object y_object, float a, float b, std::uintptr_t stream) {
    Tensor x = take(x_object, "x"), y = take(y_object, "y");
    require(x, "x", float32, {any}, on_cuda);
    require(y, "y", float32, {x.size(0)}, on_cuda);
    require_same_device(y, "y", x, "x");
    cuda::scale({x.data<const float>(), y.data<float>(), x.numel(), a, b}, x.device().id,
                reinterpret_cast<cudaStream_t>(stream));
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "CUDA kernels of fastwave.";

    m.def("devices", &devices, "One dict (name, sm, sm_count, bytes) per CUDA device; empty without a driver.");
    m.def("scale", &scale, py::arg("x"), py::arg("y"), py::arg("a"), py::arg("b"), py::arg("stream"),
          "y = a x + b over (samples,) float32 tensors, on the CUDA stream with this handle.");
}

}  // namespace fastwave
