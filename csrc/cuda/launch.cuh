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

// Of a device what a plan depends on.
struct Device {
    int sm, sm_count, shared_bytes;

    explicit Device(int index) {
        int major, minor;
        read(&major, cudaDevAttrComputeCapabilityMajor, index);
        read(&minor, cudaDevAttrComputeCapabilityMinor, index);
        read(&sm_count, cudaDevAttrMultiProcessorCount, index);
        read(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
        sm = 10 * major + minor;
    }

private:
    static void read(int* value, cudaDeviceAttr attribute, int index) {
        check(cudaDeviceGetAttribute(value, attribute, index), "cudaDeviceGetAttribute");
    }
};

// How the blocks of a launch stand: `cluster` of them along x form a thread-block cluster (1: none; above 1 needs
// sm_90; above 8 is not portable); all_resident: all run at once, or the launch is an error. Shared memory is all
// dynamic.
struct Grid {
    dim3 blocks, threads;
    unsigned cluster = 1;
    bool all_resident = false;
    std::size_t shared_bytes = 0;
};

// A kernel's attributes set, and its launch configuration, which points into this.
class Launch {
public:
    template <class Params>
    Launch(void (*kernel)(Params), const Grid& grid, cudaStream_t stream) {
        constexpr std::size_t kDefaultShared = 48 * 1024;
        constexpr unsigned kPortableCluster = 8;
        auto function = reinterpret_cast<const void*>(kernel);
        if (grid.shared_bytes > kDefaultShared)
            check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       static_cast<int>(grid.shared_bytes)),
                  "cudaFuncSetAttribute");
        if (grid.cluster > kPortableCluster)
            check(cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
                  "cudaFuncSetAttribute");
        if (grid.cluster > 1) {
            attributes_[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
            attributes_[config.numAttrs++].val.clusterDim = {grid.cluster, 1, 1};
        }
        if (grid.all_resident) {
            attributes_[config.numAttrs].id = cudaLaunchAttributeCooperative;
            attributes_[config.numAttrs++].val.cooperative = 1;
        }
        config.gridDim = grid.blocks;
        config.blockDim = grid.threads;
        config.dynamicSmemBytes = grid.shared_bytes;
        config.stream = stream;
        config.attrs = attributes_;
    }
    Launch(const Launch&) = delete;

    cudaLaunchConfig_t config = {};

private:
    cudaLaunchAttribute attributes_[2] = {};
};

template <class Params>
void launch(void (*kernel)(Params), const Grid& grid, cudaStream_t stream, const Params& params) {
    const Launch launch(kernel, grid, stream);
    check(cudaLaunchKernelEx(&launch.config, kernel, params), "cudaLaunchKernelEx");
    check(cudaGetLastError(), "a kernel launch");
}

// How many of its clusters the device can run at once; 0 where it cannot run one.
template <class Params>
int active_clusters(void (*kernel)(Params), const Grid& grid) {
    const Launch launch(kernel, grid, nullptr);
    int count = 0;
    if (cudaOccupancyMaxActiveClusters(&count, kernel, &launch.config) == cudaSuccess) return count;
    cudaGetLastError();  // an answer too, not an error for the next call to find
    return 0;
}

}  // namespace fastwave::cuda
