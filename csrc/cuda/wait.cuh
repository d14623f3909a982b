// Waiting for another block.
#pragma once

#include "cuda/ptx.cuh"

namespace fastwave::cuda {

// A wait is bounded: a mistake must end in an error, not in a device that hangs.
constexpr uint64_t patience = 2'000'000'000;  // nanoseconds

template <class Ready>
__device__ __forceinline__ bool wait_for(const Ready& ready) {
    if (ready()) return true;
    const uint64_t start = nanoseconds();
    do {
        for (int i = 0; i < 64; ++i)
            if (ready()) return true;
    } while (nanoseconds() - start < patience);
    return false;
}

}  // namespace fastwave::cuda
