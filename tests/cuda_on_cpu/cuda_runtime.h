// Stands in for CUDA's header of this name: what fastwave's .cu files use of the language and of the runtime, on the
// emulated machine. Device memory is the host's.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

// ---- the language
// ----------------------------------------------------------------------------------------------------

struct dim3 : emulator::Dim {
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : Dim{x, y, z} {}
};
struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};

#define threadIdx (emulator::current->thread)
#define blockIdx (emulator::current->block->index)
inline const emulator::Dim &blockDim = emulator::block_size, &gridDim = emulator::grid_size;

inline void __syncthreads() { emulator::arrive(emulator::current->block->barrier, true, "__syncthreads"); }
inline int __syncthreads_and(int mine) {
    return emulator::arrive(emulator::current->block->barrier, mine != 0, "__syncthreads_and");
}
inline void __syncwarp(uint32_t mask = ~0u) { emulator::exchange(mask, 0, "__syncwarp"); }
template <class T>
T __shfl_sync(uint32_t mask, T mine, int lane) {
    return emulator::exchange(mask, mine, "__shfl_sync")[lane];
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T mine, int flip) {
    return emulator::exchange(mask, mine, "__shfl_xor_sync")[emulator::current->lane ^ flip];
}
template <class T>
T min(T a, T b) {
    return a < b ? a : b;
}
template <class T>
T max(T a, T b) {
    return a > b ? a : b;
}
inline int atomicAdd(int* address, int value) {
    const int before = *address;
    *address += value;
    return before;
}
inline float __uint_as_float(uint32_t bits) { return __builtin_bit_cast(float, bits); }
inline uint32_t __float_as_uint(float value) { return __builtin_bit_cast(uint32_t, value); }

// ---- the runtime
// -----------------------------------------------------------------------------------------------------

enum cudaError_t {
    cudaSuccess,
    cudaErrorInvalidValue,
    cudaErrorNoDevice,
    cudaErrorInsufficientDriver,
    cudaErrorCooperativeLaunchTooLarge
};
using cudaStream_t = struct Stream*;

inline const char* cudaGetErrorName(cudaError_t error) {
    constexpr const char* names[] = {"cudaSuccess", "cudaErrorInvalidValue", "cudaErrorNoDevice",
                                     "cudaErrorInsufficientDriver", "cudaErrorCooperativeLaunchTooLarge"};
    return names[error];
}
inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

struct cudaDeviceProp {
    char name[32];
    int major, minor, multiProcessorCount;
    std::size_t totalGlobalMem;
};
enum cudaDeviceAttr {
    cudaDevAttrComputeCapabilityMajor,
    cudaDevAttrComputeCapabilityMinor,
    cudaDevAttrMultiProcessorCount,
    cudaDevAttrMaxSharedMemoryPerBlockOptin
};
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    const emulator::Settings& s = emulator::settings;
    const int values[] = {s.sm / 10, s.sm % 10, s.sm_count, s.shared_bytes};
    return *value = values[attribute], cudaSuccess;
}
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
    const emulator::Settings& s = emulator::settings;
    *properties = {"emulated", s.sm / 10, s.sm % 10, s.sm_count, std::size_t{1} << 30};
    return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* data, int value, std::size_t bytes, cudaStream_t) {
    return std::memset(data, value, bytes), cudaSuccess;
}
enum cudaMemcpyKind { cudaMemcpyDeviceToHost };
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t) {
    return std::memcpy(to, from, bytes), cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaFuncAttributeNonPortableClusterSizeAllowed };
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute attribute, int value) {
    const bool fits =
        attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value <= emulator::settings.shared_bytes;
    return fits ? cudaSuccess : cudaErrorInvalidValue;
}

enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension, cudaLaunchAttributeCooperative };
struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    union {
        struct {
            unsigned x, y, z;
        } clusterDim;
        int cooperative;
    } val;
};
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    std::size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute* attrs;
    unsigned numAttrs;
};

template <class Params>
cudaError_t cudaOccupancyMaxActiveClusters(int* count, void (*)(Params), const cudaLaunchConfig_t* config) {
    constexpr unsigned largest = 16;
    const unsigned cluster = config->attrs[0].val.clusterDim.x;
    *count = cluster > largest ? 0 : emulator::settings.sm_count / static_cast<int>(cluster);
    return cudaSuccess;
}

template <class Params>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params),
                               const std::type_identity_t<Params>& params) {
    unsigned cluster = 1;
    bool cooperative = false;
    for (unsigned i = 0; i < config->numAttrs; ++i) {
        if (config->attrs[i].id == cudaLaunchAttributeClusterDimension) cluster = config->attrs[i].val.clusterDim.x;
        if (config->attrs[i].id == cudaLaunchAttributeCooperative) cooperative = config->attrs[i].val.cooperative;
    }
    const emulator::Dim& grid = config->gridDim;
    if (grid.x % cluster || config->blockDim.x * config->blockDim.y * config->blockDim.z > 1024)
        return cudaErrorInvalidValue;
    if (cooperative && grid.x * grid.y * grid.z > unsigned(emulator::settings.sm_count))
        return cudaErrorCooperativeLaunchTooLarge;
    emulator::run(grid, cluster, config->blockDim, config->dynamicSmemBytes, cooperative, [&] { kernel(params); });
    return cudaSuccess;
}
