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

// Matrices of 8 rows of 16 bytes from shared memory by a warp: lane 8 i + r names row r of matrix i, and lane (g, q)
// gets word q of row g of each. That is b of mma_bfloat16, for rows that hold a column's depths.
__device__ __forceinline__ void ldmatrix(uint32_t (&out)[2], const uint32_t* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
                 : "memory");
}

__device__ __forceinline__ void ldmatrix(uint32_t (&out)[4], const uint32_t* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
                 : "memory");
}

// ---- from global to shared memory, beside the arithmetic
// -------------------------------------------------------------

// Copies 16 bytes, or writes zeros where they are not wanted. They are there behind a wait and a barrier; before sm_80
// at once.
__device__ __forceinline__ void copy_async(uint32_t* shared, const uint32_t* global, bool wanted) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
        "l"(__cvta_generic_to_global(global)), "r"(wanted ? 16 : 0)
        : "memory");
#else
    *reinterpret_cast<uint4*>(shared) = wanted ? __ldcg(reinterpret_cast<const uint4*>(global)) : uint4{0, 0, 0, 0};
#endif
}

// The thread's copies since the last commit are a group.
__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for all groups of the thread but the last `left`.
template <int left>
__device__ __forceinline__ void wait_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
#endif
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

// A flag: what a thread has written or seen before it is set, is there for whoever has seen it.
__device__ __forceinline__ void store_release(int* flag, int value) {
    asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(__cvta_generic_to_global(flag)), "r"(value) : "memory");
}

__device__ __forceinline__ int load_acquire(const int* flag) {
    int value;
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(__cvta_generic_to_global(flag)) : "memory");
    return value;
}

// Ends every kernel of the process with an error.
__device__ __forceinline__ void trap() { asm volatile("trap;"); }

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
