// The table of CPU kernels. To add one: a member here, a line in kernels/table.cpp, and a file
// csrc/cpu/kernels/NAME.cpp that defines it in `namespace fastwave::FASTWAVE_ISA`. CMake compiles it once per
// instruction set.
#pragma once

#include "params.h"

namespace fastwave {

struct Kernels {
    const char* isa;
    void (*gated_stack)(const GatedStackParams&);
    int64_t (*gated_stack_workspace)(const StackShape&, int64_t threads);  // floats
    void (*project)(const ProjectParams&);
    int64_t (*project_workspace)(const StackShape&);
    void (*wavenet_sample)(const WaveNetSampleParams&);
    int64_t (*wavenet_sample_workspace)(const StackShape&, int64_t rows);
    void (*upsample)(const UpsampleParams&);
    int64_t (*upsample_workspace)(const UpsampleParams&);
    int64_t (*peak)(int64_t rounds, Dtype, float* sink);  // multiply-adds
    float (*read)(const float* data, int64_t floats, int64_t times);
};

}  // namespace fastwave
