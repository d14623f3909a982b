#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace fastwave::cuda {

std::vector<DeviceInfo> devices() {
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver) {
        cudaGetLastError();  // no device is an answer here, not an error for the next call to find
        return {};
    }
    check(error, "cudaGetDeviceCount");
    std::vector<DeviceInfo> infos;
    for (int device = 0; device < count; ++device) {
        cudaDeviceProp properties;
        check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
        infos.push_back({properties.name, 10 * properties.major + properties.minor, properties.multiProcessorCount,
                         static_cast<int64_t>(properties.totalGlobalMem)});
    }
    return infos;
}

}  // namespace fastwave::cuda
