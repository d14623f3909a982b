// What the CUDA files offer to bind_cuda.cpp.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>
#include <vector>

namespace fastwave::cuda {

struct DeviceInfo {
    std::string name;
    int sm;         // compute capability: 90 for 9.0
    int sm_count;   // multiprocessors
    int64_t bytes;  // of memory
};

std::vector<DeviceInfo> devices();  // empty where there is no driver or no device

// y = a x + b
struct ScaleParams {
    const float* x;
    float* y;
    int64_t n;
    float a;
    float b;
};
void scale(const ScaleParams& params, int device, cudaStream_t stream);

}  // namespace fastwave::cuda
