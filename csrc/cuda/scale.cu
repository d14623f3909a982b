// The least op there can be: it proves the build, the launch and the binding.
#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace fastwave::cuda {

namespace {

__global__ void scale_kernel(const ScaleParams p) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < p.n; i += step)
        p.y[i] = p.a * p.x[i] + p.b;
}

}  // namespace

void scale(const ScaleParams& params, int device, cudaStream_t stream) {
    if (params.n == 0) return;
    constexpr unsigned kBlock = 256;
    constexpr int64_t kMaxGrid = 1 << 16;
    DeviceGuard guard(device);
    const int64_t grid = std::min((params.n + kBlock - 1) / kBlock, kMaxGrid);
    launch(scale_kernel, {.blocks = static_cast<unsigned>(grid), .threads = kBlock}, stream, params);
}

}  // namespace fastwave::cuda
