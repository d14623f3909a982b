// Threads that share the rows of a batch, or the products of one row.
#pragma once

#include <stdint.h>

namespace fastwave {

constexpr int64_t max_team = 16;

// Threads that split a kernel's products, microseconds of work at a time: `split` runs part(context, i, size) once for
// each i below size, and returns when all are done. Kernels, which include no library header, see only this.
struct Team {
    int64_t size;
    void (*split)(Team*, void (*part)(void* context, int64_t index, int64_t size), void* context);
};

}  // namespace fastwave
