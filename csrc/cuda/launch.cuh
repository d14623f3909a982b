// The only place that starts a kernel, and what goes with it: error checks and the current device.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <stdexcept>
#include <string>

namespace fastwave::cuda {

// Throws std::runtime_error("cudaErrorInvalidValue: invalid argument (in WHAT)") for anything but success.
inline void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    throw std::runtime_error(std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error) + " (in " + what +
                             ")");
}

// Makes a device current while it lives: a stream belongs to one.
class DeviceGuard {
public:
    explicit DeviceGuard(int device) {
        check(cudaGetDevice(&previous_), "cudaGetDevice");
        check(cudaSetDevice(device), "cudaSetDevice");
    }
    ~DeviceGuard() { cudaSetDevice(previous_); }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

private:
    int previous_ = 0;
};

// `cluster` blocks of the grid's x direction form a thread-block cluster (1: none; above 1 needs sm_90; above 8 is not
// portable). `smem` bytes of shared memory, all dynamic.
template <class Params>
void launch(void (*kernel)(Params), dim3 grid, unsigned cluster, dim3 block, std::size_t smem, cudaStream_t stream,
            const Params& params) {
    constexpr std::size_t kDefaultSmem = 48 * 1024;
    constexpr unsigned kPortableCluster = 8;
    auto function = reinterpret_cast<const void*>(kernel);
    if (smem > kDefaultSmem)
        check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(smem)),
              "cudaFuncSetAttribute");
    if (cluster > kPortableCluster)
        check(cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
              "cudaFuncSetAttribute");

    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {cluster, 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = smem;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = cluster > 1 ? 1 : 0;
    check(cudaLaunchKernelEx(&config, kernel, params), "cudaLaunchKernelEx");
    check(cudaGetLastError(), "a kernel launch");
}

}  // namespace fastwave::cuda
