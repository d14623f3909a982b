// Every instruction that has no name in CUDA C++, behind a function. tests/cuda_on_cpu/cuda/ptx.cuh has the same
// functions for the host.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fastwave::cuda {

// The architecture that this pass compiles for: 90 for sm_90.
#ifdef __CUDA_ARCH__
constexpr int compiled_for = __CUDA_ARCH__ / 10;
#else
constexpr int compiled_for = 0;  // the host's pass, where no kernel's body is wanted
#endif

// The block's dynamic shared memory, all there is.
__device__ __forceinline__ unsigned char* shared_memory() {
    extern __shared__ __align__(128) unsigned char bytes[];
    return bytes;
}

__device__ __forceinline__ uint64_t nanoseconds() {
    uint64_t now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

// ---- arithmetic
// ------------------------------------------------------------------------------------------------------

// Two float32 to bfloat16, to nearest even; `low` in the low half.
__device__ __forceinline__ uint32_t pack_bfloat16(float low, float high) {
#if __CUDA_ARCH__ >= 800
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#else
    auto rounded = [](float value) {
        const uint32_t bits = __float_as_uint(value);
        return value != value ? 0x7fffu : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    };
    return rounded(low) | rounded(high) << 16;
#endif
}

// d (16, 8) += a (16, 16) b (16, 8) by a warp, bfloat16 with float32 sums; needs sm_80. The layout is the
// instruction's: lane (g, q) = (lane / 4, lane % 4) holds of a rows g and g + 8, depths 2q, 2q + 1 and the same plus 8;
// of b those depths of column g; of d rows g and g + 8, columns 2q and 2q + 1.
__device__ __forceinline__ void mma_bfloat16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- between blocks, through the L2 cache
// ----------------------------------------------------------------------------

// 16 bytes that arrive together: a 128-bit access is single in the PTX memory model, where a vector of four is not.
__device__ __forceinline__ void store_relaxed(uint4* address, const uint4& value) {
    asm volatile(
        "{\n.reg .b64 low, high;\n.reg .b128 all;\n"
        "mov.b64 low, {%1, %2};\nmov.b64 high, {%3, %4};\nmov.b128 all, {low, high};\n"
        "st.relaxed.gpu.global.b128 [%0], all;\n}" ::"l"(__cvta_generic_to_global(address)),
        "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w)
        : "memory");
}

__device__ __forceinline__ uint4 load_relaxed(const uint4* address) {
    uint4 value;
    asm volatile(
        "{\n.reg .b64 low, high;\n.reg .b128 all;\n"
        "ld.relaxed.gpu.global.b128 all, [%4];\nmov.b128 {low, high}, all;\n"
        "mov.b64 {%0, %1}, low;\nmov.b64 {%2, %3}, high;\n}"
        : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
        : "l"(__cvta_generic_to_global(address))
        : "memory");
    return value;
}

// ---- between the blocks of a cluster; these need sm_90
// ---------------------------------------------------------------

// Every thread of the cluster; what was written before to shared memory is seen behind it.
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ uint32_t shared_address(const void* shared) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// A barrier that one thread arrives at, and that bytes of st_async complete.
__device__ __forceinline__ void mbarrier_init(uint64_t* barrier) {
    asm volatile(
        "mbarrier.init.shared::cta.b64 [%0], 1;\nfence.mbarrier_init.release.cluster;" ::"r"(shared_address(barrier))
        : "memory");
}

// Arrives: the phase is over when so many bytes have come too, before this or after.
__device__ __forceinline__ void mbarrier_expect(uint64_t* barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}

// Whether the phase of this parity is over; may wait a little. Bytes of st_async are then there to be read.
__device__ __forceinline__ bool mbarrier_try_wait(const uint64_t* barrier, uint32_t parity) {
    uint32_t over;
    asm volatile(
        "{\n.reg .pred over;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 over, [%1], %2;\n"
        "selp.u32 %0, 1, 0, over;\n}"
        : "=r"(over)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
    return over;
}

// Stores 16 bytes where `address` lies in the shared memory of block `rank` of the cluster, and completes them at that
// block's `barrier`.
__device__ __forceinline__ void st_async(const void* address, const uint4& value, const uint64_t* barrier,
                                         uint32_t rank) {
    asm volatile(
        "{\n.reg .b32 to, done;\n"
        "mapa.shared::cluster.u32 to, %0, %6;\nmapa.shared::cluster.u32 done, %1, %6;\n"
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [to], {%2, %3, %4, %5}, [done];\n}" ::"r"(
            shared_address(address)),
        "r"(shared_address(barrier)), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(rank)
        : "memory");
}

}  // namespace fastwave::cuda
