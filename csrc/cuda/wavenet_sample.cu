// wavenet_sample on the GPU: which kernel runs, how the stack is laid on the multiprocessors, and the launches.
#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <type_traits>

#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/sampler.cuh"

namespace fastwave::cuda {

namespace {

// A long generation is cut into launches of about so long: between them Ctrl-C is heard, and a display is drawn.
constexpr double launch_seconds = 0.1;
constexpr int64_t first_steps = 32;

struct Kernel {
    const char* name;
    Dtype dtype;
    int sm;                       // from this on
    bool cluster;                 // whether a pipeline is a thread-block cluster
    int columns, residual, gate;  // 0: any
    int threads;
    void (*sample)(SamplerParams);
    int64_t (*block_bytes)(const SamplerParams& p);    // of workspace, if nothing finds room in shared memory
    int64_t (*message_bytes)(const SamplerParams& p);  // of a block's messages
    int64_t (*way_bytes)(const SamplerParams& p);      // of its matrices on a sample's way, beside those in registers
    int64_t (*box_packets)(const SamplerParams& p, int64_t stages);
};

template <class T, int columns, class Hop, class Size>
constexpr Kernel kernel(const char* name) {
    return {name,
            T::dtype,
            std::max(T::sm, Hop::sm),
            std::is_same_v<Hop, ClusterHop>,
            columns,
            Size::residual,
            Size::gate,
            Size::threads,
            &sample<T, columns, Hop, Size>,
            [](const SamplerParams& p) {
                Arena arena{nullptr, 0, nullptr, 0};
                Buffers<T, columns>(arena, p, p.stage_layers);
                return arena.global_used;
            },
            [](const SamplerParams& p) {
                Arena arena{nullptr, 0, nullptr, 0};
                return Buffers<T, columns>(arena, p, 0).message_bytes(p.groups);
            },
            [](const SamplerParams& p) {
                const int64_t tap = 2 * padded_rows(p.gate) * T::words(p.residual);
                const int64_t product = padded_rows(p.residual) * T::words(p.gate);
                return 4 * (std::max(0, p.stage_layers - Size::gates) * tap +
                            std::max(0, p.stage_layers - Size::residuals) * product);
            },
            [](const SamplerParams& p, int64_t stages) {
                Arena arena{nullptr, 0, nullptr, 0};
                const auto b = Buffers<T, columns>(arena, p, p.stage_layers);
                return Mailbox::packets(stages, p.groups, std::max(b.residual_words(), b.skip_words));
            }};
}

// All there are; the first that fits is taken. A size is residual/gate channels. In float32 eight columns' sums leave
// no registers to hold weights in.
constexpr Kernel kernels[] = {
    kernel<Bfloat16Mma, 1, ClusterHop, Size<128, 128, 2, 1>>("cluster 128/128"),
    kernel<Bfloat16Mma, 8, ClusterHop, Size<128, 128, 2, 1>>("cluster 128/128"),
    kernel<Bfloat16Mma, 1, ClusterHop, Size<64, 64, 2, 2>>("cluster 64/64"),
    kernel<Bfloat16Mma, 8, ClusterHop, Size<64, 64, 2, 2>>("cluster 64/64"),
    kernel<Bfloat16Mma, 1, ClusterHop, Size<64, 128, 2, 2>>("cluster 64/128"),
    kernel<Bfloat16Mma, 8, ClusterHop, Size<64, 128, 2, 2>>("cluster 64/128"),
    kernel<Bfloat16Mma, 1, ClusterHop, Size<128, 256, 0, 0>>("cluster 128/256"),
    kernel<Bfloat16Mma, 8, ClusterHop, Size<128, 256, 0, 0>>("cluster 128/256"),
    kernel<Bfloat16Mma, 1, ClusterHop, AnySize>("cluster"),
    kernel<Bfloat16Mma, 8, ClusterHop, AnySize>("cluster"),
    kernel<Bfloat16Mma, 1, Mailbox, Size<128, 128, 1, 1>>("mailboxes 128/128"),
    kernel<Bfloat16Mma, 8, Mailbox, Size<128, 128, 1, 1>>("mailboxes 128/128"),
    kernel<Bfloat16Mma, 1, Mailbox, Size<64, 64, 1, 1>>("mailboxes 64/64"),
    kernel<Bfloat16Mma, 8, Mailbox, Size<64, 64, 1, 1>>("mailboxes 64/64"),
    kernel<Bfloat16Mma, 1, Mailbox, Size<64, 128, 1, 1>>("mailboxes 64/128"),
    kernel<Bfloat16Mma, 8, Mailbox, Size<64, 128, 1, 1>>("mailboxes 64/128"),
    kernel<Bfloat16Mma, 1, Mailbox, Size<128, 256, 0, 0>>("mailboxes 128/256"),
    kernel<Bfloat16Mma, 8, Mailbox, Size<128, 256, 0, 0>>("mailboxes 128/256"),
    kernel<Bfloat16Mma, 1, Mailbox, AnySize>("mailboxes"),
    kernel<Bfloat16Mma, 8, Mailbox, AnySize>("mailboxes"),
    kernel<Bfloat16, 1, Mailbox, AnySize>("mailboxes, no matrix instruction"),
    kernel<Bfloat16, 8, Mailbox, AnySize>("mailboxes, no matrix instruction"),
    kernel<Float32, 1, ClusterHop, Size<64, 64, 2, 0>>("cluster 64/64"),
    kernel<Float32, 1, ClusterHop, Size<64, 128, 2, 0>>("cluster 64/128"),
    kernel<Float32, 1, Mailbox, Size<128, 128, 1, 0>>("mailboxes 128/128"),
    kernel<Float32, 1, Mailbox, Size<64, 64, 1, 1>>("mailboxes 64/64"),
    kernel<Float32, 1, Mailbox, Size<64, 128, 1, 1>>("mailboxes 64/128"),
    kernel<Float32, 1, Mailbox, Size<128, 256, 0, 0>>("mailboxes 128/256"),
    kernel<Float32, 1, ClusterHop, AnySize>("cluster"),
    kernel<Float32, 8, ClusterHop, AnySize>("cluster"),
    kernel<Float32, 1, Mailbox, AnySize>("mailboxes"),
    kernel<Float32, 8, Mailbox, AnySize>("mailboxes"),
};

// Blocks of a cluster: 16 on the large chips, 8 anywhere.
constexpr int largest_cluster(int sm) { return sm < 120 ? 16 : 8; }

// How a call runs: `pipelines` of `stages` blocks, each with its share of the groups of rows.
struct Plan {
    const Kernel* kernel;
    SamplerParams params = {};
    int stages = 0, pipelines = 0, threads = 0;
    int64_t rings_at = 0, boxes_at = 0, bytes = 0;  // of workspace: the blocks' own, the rings, the boxes, the status

    int64_t status_at() const { return boxes_at + pipelines * params.pipeline_packets * int64_t{sizeof(uint4)}; }
    Grid grid() const {
        return {.blocks = dim3(stages, pipelines),
                .threads = static_cast<unsigned>(threads),
                .cluster = kernel->cluster ? static_cast<unsigned>(stages) : 1,
                .all_resident = !kernel->cluster,
                .shared_bytes = static_cast<std::size_t>(params.shared_bytes)};
    }
};

// The plan for one kernel; without a pipeline where the device cannot run it.
Plan lay_out(const Kernel& kernel, const StackShape& s, int64_t rows, const Device& device) {
    Plan plan{.kernel = &kernel};
    SamplerParams& p = plan.params;
    p.set_sizes(s);
    p.rows = rows;
    p.shared_bytes = device.shared_bytes;

    // The head has a block to itself if there are two, and the layers share the others.
    const int blocks = kernel.cluster ? std::min(largest_cluster(device.sm), device.sm_count) : device.sm_count;
    const int layer_stages = std::min(p.layers, blocks - 1);
    p.stage_layers = layer_stages > 0 ? (p.layers - 1) / layer_stages + 1 : p.layers;
    plan.stages = layer_stages > 0 ? (p.layers - 1) / p.stage_layers + 2 : 1;

    // A warp for each panel of the widest product, but for the skip's.
    int64_t panels = std::max(s.residual, s.gate);
    for (int i = 0; i < p.heads; ++i) panels = std::max(panels, s.head_channels[i]);
    plan.threads = static_cast<int>(std::min(int64_t{kernel.threads}, padded(panels) / panel * 32));

    const int64_t groups = (rows + kernel.columns - 1) / kernel.columns;
    plan.pipelines = 1;
    const int most = kernel.cluster ? active_clusters(kernel.sample, plan.grid()) : device.sm_count / plan.stages;
    plan.pipelines = static_cast<int>(std::min(int64_t{most}, groups));
    if (plan.pipelines == 0) return plan;
    p.groups = static_cast<int>((groups - 1) / plan.pipelines + 1);
    if (kernel.cluster && kernel.message_bytes(p) + kernel.way_bytes(p) > p.shared_bytes) plan.pipelines = 0;

    p.block_bytes = kernel.block_bytes(p);
    p.pipeline_packets = kernel.box_packets(p, plan.stages);
    plan.rings_at = plan.stages * plan.pipelines * p.block_bytes;
    const int64_t ring_bytes = 4 * s.reach() * p.groups * kernel.columns * s.residual * plan.pipelines;
    plan.boxes_at = plan.rings_at + (ring_bytes + 15) / 16 * 16;
    plan.bytes = plan.status_at() + int64_t{sizeof(uint4)};
    return plan;
}

Plan make_plan(const StackShape& s, int64_t rows, const Device& device) {
    const int columns = rows == 1 ? 1 : 8;
    for (const Kernel& kernel : kernels) {
        if (kernel.dtype != s.dtype || kernel.sm > device.sm || kernel.columns != columns) continue;
        if (kernel.residual && (kernel.residual != s.residual || kernel.gate != s.gate)) continue;
        const Plan plan = lay_out(kernel, s, rows, device);
        if (plan.pipelines) return plan;
    }
    throw std::logic_error("wavenet_sample: no kernel");  // the last ones take everything
}

}  // namespace

SamplePlan wavenet_sample_plan(const StackShape& shape, int64_t rows, int device) {
    DeviceGuard guard(device);
    const Plan plan = make_plan(shape, rows, Device(device));
    return {plan.kernel->name, plan.kernel->residual == 0, plan.stages, plan.pipelines, plan.bytes};
}

void wavenet_sample(const WaveNetSampleParams& call, int device, cudaStream_t stream) {
    DeviceGuard guard(device);
    const StackShape& s = call.shape;
    Plan plan = make_plan(s, call.rows, Device(device));
    SamplerParams& p = plan.params;

    p.set_weights(call.weights, s);
    p.distribution = call.distribution;
    p.log_scale_min = call.log_scale_min, p.clamp = call.clamp, p.temperature = call.temperature;
    p.table = call.table, p.noise = call.noise, p.c = call.c, p.g = call.g, p.forced = call.forced;
    p.state = call.state, p.samples = call.samples, p.parameters = call.parameters;
    p.lengths = call.lengths;
    p.time = call.time, p.noise_channels = call.noise_channels, p.cond_time = call.cond_time;
    p.forced_time = call.forced_time, p.state_size = call.state_size;

    p.workspace = reinterpret_cast<unsigned char*>(call.workspace);
    p.rings = reinterpret_cast<float*>(p.workspace + plan.rings_at);
    p.boxes = reinterpret_cast<uint4*>(p.workspace + plan.boxes_at);
    p.status = reinterpret_cast<int*>(p.workspace + plan.status_at());
    check(cudaMemsetAsync(p.boxes, 0, plan.bytes - plan.boxes_at, stream), "cudaMemsetAsync");

    int64_t start = 0, steps = first_steps;
    while (start < call.time) {
        if (call.poll && call.poll(call.poll_context)) return;
        p.start = static_cast<int>(start);
        p.steps = static_cast<int>(std::min(steps, call.time - start));
        const auto began = std::chrono::steady_clock::now();
        launch(plan.kernel->sample, plan.grid(), stream, p);
        int status;
        check(cudaMemcpyAsync(&status, p.status, sizeof status, cudaMemcpyDeviceToHost, stream), "cudaMemcpyAsync");
        check(cudaStreamSynchronize(stream), "wavenet_sample");
        if (status)
            throw std::runtime_error("wavenet_sample: block " + std::to_string(status - 1) +
                                     " of a pipeline has waited 2 s for another one in vain");
        start += p.steps;
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
        const double wanted = p.steps * (launch_seconds / std::max(took.count(), 1e-6));
        steps = static_cast<int64_t>(std::clamp(wanted, 1., 4. * static_cast<double>(steps)));
    }
}

}  // namespace fastwave::cuda
