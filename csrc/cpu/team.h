// Threads that share the rows of a batch, or the products of one row.
#pragma once

#include <stdint.h>

namespace fastwave {

constexpr int64_t max_team = 16;

// Threads that run parts of a kernel. Kernels, which include no library header, see only this.
//
// split: part(context, i, size) once for each i below size, on whichever thread comes; returns when all are done.
// together: the same, but at the same time on `size` threads, which may `meet`: none goes on before all have come.
//     Where they cannot all begin at once, part(context, 0, 1) runs alone.
struct Team {
    int64_t size;
    void (*split)(Team*, void (*part)(void* context, int64_t index, int64_t size), void* context);
    void (*together)(Team*, void (*part)(void* context, int64_t index, int64_t size), void* context);
    void (*meet)(Team*, int64_t index);
};

}  // namespace fastwave
