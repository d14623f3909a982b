#include "cpu/kernels.h"

#define FASTWAVE_STRING(text) #text
#define FASTWAVE_NAME(isa) FASTWAVE_STRING(isa)

namespace fastwave::FASTWAVE_ISA {

void gated_stack(const GatedStackParams&);
int64_t gated_stack_workspace(const StackShape&, int64_t threads);
void project(const ProjectParams&);
int64_t project_workspace(const StackShape&);
void wavenet_sample(const WaveNetSampleParams&);
int64_t wavenet_sample_workspace(const StackShape&, int64_t rows);
void upsample(const UpsampleParams&);
int64_t upsample_workspace(const UpsampleParams&);
int64_t peak(int64_t rounds, Dtype, float* sink);
float read(const float* data, int64_t floats, int64_t times);

const Kernels& kernels() {
    static constexpr Kernels table = {
        .isa = FASTWAVE_NAME(FASTWAVE_ISA),
        .gated_stack = gated_stack,
        .gated_stack_workspace = gated_stack_workspace,
        .project = project,
        .project_workspace = project_workspace,
        .wavenet_sample = wavenet_sample,
        .wavenet_sample_workspace = wavenet_sample_workspace,
        .upsample = upsample,
        .upsample_workspace = upsample_workspace,
        .peak = peak,
        .read = read,
    };
    return table;
}

}  // namespace fastwave::FASTWAVE_ISA
