// What the CUDA files offer to bind_cuda.cpp.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>
#include <vector>

#include "params.h"

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

// Every row of a batch at once; pointers are the device's. Returns when it is done, or `poll` has said stop.
void wavenet_sample(const WaveNetSampleParams& params, int device, cudaStream_t stream);

// How such a call runs.
struct SamplePlan {
    std::string kernel;
    bool general;           // for any size, and so slower than one for this size
    int stages, pipelines;  // blocks in a pipeline, and pipelines side by side
    int64_t workspace;      // bytes
};
SamplePlan wavenet_sample_plan(const StackShape& shape, int64_t rows, int device);

// Of a call of gated_stack, every row of a batch, what its tensors are not: see GatedStackParams (params.h), whose
// pointers are the device's here, each tensor's first row. Of them `workspace` has StackPlan::workspace bytes.
struct StackBatch {
    GatedStackParams tensors;
    int64_t rows;
    const int64_t* lengths;  // valid columns of each row from -pending on, or null; `tensors.length` has no meaning
};

// Enqueues it, and does not wait.
void gated_stack(const StackBatch& call, int device, cudaStream_t stream);

struct StackPlan {
    std::string kernel;
    int columns, blocks;  // of a tile; that draw tiles
    int64_t workspace;    // bytes
};
StackPlan gated_stack_plan(const StackBatch& call, int device);

}  // namespace fastwave::cuda
