// What the parts of the sampler's design cost on this device, one by one; prints a JSON object. A time is the median of
// several launches; a launch makes many rounds, so what it takes to begin does not count.
//
//     nvcc -std=c++20 -arch=native -I csrc --expt-relaxed-constexpr benchmarks/gpu/probes.cu -o probes && ./probes
#include <algorithm>
#include <cstdio>
#include <vector>

#include "cuda/hop.cuh"
#include "cuda/launch.cuh"
#include "cuda/product.cuh"

using namespace fastwave::cuda;

namespace {

constexpr int rounds = 2000, launches = 7, words = 192;  // of a message: h and its bfloat16 for 128 channels

struct Params {
    uint4* boxes;
    const uint32_t* weights;
    float* time;
    float* sink;
};

// A message to and fro between two blocks: nanoseconds of one hop.
template <class Hop>
__global__ void hop_kernel(const Params p) {
    if constexpr (Hop::sm <= compiled_for) {
        uint32_t* message = reinterpret_cast<uint32_t*>(shared_memory());
        const Place place{static_cast<int>(blockIdx.x),
                          1,
                          {words, words, words},
                          reinterpret_cast<uint64_t*>(message + words),
                          p.boxes,
                          1};
        Hop hop(place);
        for (int i = threadIdx.x; i < words; i += blockDim.x) message[i] = i;
        __syncthreads();
        hop.open();
        const uint64_t start = nanoseconds();
        bool alive = true;
        for (int i = 0; i < rounds && alive; ++i) {
            if (blockIdx.x == 0) {
                hop.send(1, residual_message, 0, i, message);
                alive = hop.receive(residual_message, 0, i, message);
            } else {
                alive = hop.receive(residual_message, 0, i, message);
                if (alive) hop.send(0, residual_message, 0, i, message);
            }
        }
        hop.close();
        if (blockIdx.x == 0 && threadIdx.x == 0) *p.time = static_cast<float>(nanoseconds() - start) / (2 * rounds);
    }
}

__global__ void cluster_sync_kernel(const Params p) {
    if constexpr (ClusterHop::sm <= compiled_for) {
        const uint64_t start = nanoseconds();
        for (int i = 0; i < rounds; ++i) cluster_sync();
        if (blockIdx.x == 0 && threadIdx.x == 0) *p.time = static_cast<float>(nanoseconds() - start) / rounds;
    }
}

// Cycles of the multiprocessor in a microsecond.
__global__ void clock_kernel(const Params p) {
    const uint64_t start = nanoseconds();
    const long long first = clock64();
    while (nanoseconds() - start < 1'000'000) {
    }
    *p.time = static_cast<float>(clock64() - first) / (static_cast<float>(nanoseconds() - start) / 1000);
}

// The gate's current tap of a 128/128 layer, (256, 128), by eight warps: cycles, the barrier included.
template <class T, bool from_registers>
__global__ void __launch_bounds__(256, 1) product_kernel(const Params p) {
    if constexpr (T::sm <= compiled_for) {
        constexpr int depth_words = T::words(128), panel_words = 16 * depth_words;
        const int stride = column_stride(depth_words), warp = threadIdx.x / 32;
        uint32_t* weights = reinterpret_cast<uint32_t*>(shared_memory());
        uint32_t* x = weights + 16 * panel_words;
        for (int i = threadIdx.x; i < 16 * panel_words; i += blockDim.x) weights[i] = p.weights[i];
        for (int i = threadIdx.x; i < stride; i += blockDim.x) x[i] = 0;
        __syncthreads();
        const InMemory<4> memory[2] = {{weights + 2 * warp * panel_words, depth_words},
                                       {weights + (2 * warp + 1) * panel_words, depth_words}};
        InRegisters<depth_words> held[2];
        held[0].load(memory[0]);
        held[1].load(memory[1]);
        Fragment sum[2] = {};
        const long long start = clock64();
        for (int i = 0; i < rounds; ++i) {
            for (int half = 0; half < 2; ++half)
                if constexpr (from_registers)
                    T::template multiply<1>(sum[half], held[half], depth_words, x, stride);
                else
                    T::template multiply<1>(sum[half], memory[half], depth_words, x, stride);
            x[threadIdx.x % depth_words] = __float_as_uint(sum[0].value[0][0] + sum[1].value[0][0]);
            __syncthreads();
        }
        if (threadIdx.x == 0) *p.time = static_cast<float>(clock64() - start) / rounds;
        p.sink[threadIdx.x] = sum[0].value[0][0];
    }
}

template <class T>
T* device_memory(std::size_t count) {
    T* data;
    check(cudaMalloc(&data, count * sizeof(T)), "cudaMalloc");
    check(cudaMemset(data, 0, count * sizeof(T)), "cudaMemset");
    return data;
}

void measure(const char* name, void (*kernel)(Params), const Grid& grid, const Params& params, bool last = false) {
    std::vector<float> times;
    for (int i = 0; i < launches; ++i) {
        check(cudaMemset(params.boxes, 0, 4096 * sizeof(uint4)), "cudaMemset");
        launch(kernel, grid, nullptr, params);
        float time;
        check(cudaMemcpy(&time, params.time, sizeof time, cudaMemcpyDeviceToHost), name);
        times.push_back(time);
    }
    std::sort(times.begin(), times.end());
    std::printf("  \"%s\": %.1f%s\n", name, times[launches / 2], last ? "" : ",");
}

}  // namespace

int main() {
    int major, shared;
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "cudaDeviceGetAttribute");
    check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0), "cudaDeviceGetAttribute");
    const Params p{device_memory<uint4>(4096), device_memory<uint32_t>(16 * 16 * 128), device_memory<float>(1),
                   device_memory<float>(256)};
    std::printf("{\n");
    measure("l2_hop_ns", hop_kernel<Mailbox>, {.blocks = 2, .threads = 256, .all_resident = true, .shared_bytes = 4096},
            p);
    if (major >= 9) {
        measure("st_async_hop_ns", hop_kernel<ClusterHop>,
                {.blocks = 2, .threads = 256, .cluster = 2, .shared_bytes = 4096}, p);
        measure("cluster_sync_8_ns", cluster_sync_kernel, {.blocks = 8, .threads = 256, .cluster = 8}, p);
        measure("cluster_sync_16_ns", cluster_sync_kernel, {.blocks = 16, .threads = 256, .cluster = 16}, p);
    }
    const Grid one{.blocks = 1, .threads = 256, .shared_bytes = 4 * (16 * 16 * 64 + 128)};
    if (major >= 8) {
        measure("bfloat16_from_registers_cycles", product_kernel<Bfloat16Mma, true>, one, p);
        measure("bfloat16_from_shared_cycles", product_kernel<Bfloat16Mma, false>, one, p);
    }
    const Grid large{.blocks = 1, .threads = 256, .shared_bytes = 4 * (16 * 16 * 128 + 256)};
    if (static_cast<std::size_t>(shared) >= large.shared_bytes) {
        measure("float32_from_registers_cycles", product_kernel<Float32, true>, large, p);
        measure("float32_from_shared_cycles", product_kernel<Float32, false>, large, p);
    }
    measure("clock_mhz", clock_kernel, {.blocks = 1, .threads = 1}, p, true);
    std::printf("}\n");
}
