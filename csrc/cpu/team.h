// Threads that share the rows of a batch, or the products of one row.
#pragma once

#include <stdint.h>

namespace fastwave {

constexpr int64_t max_team = 16;
constexpr int64_t max_stages = 4 * max_team;  // of a line

// Stages in a row, and how often each has its turn.
struct Line {
    int64_t stages, turns, slack;
};

// Threads that run parts of a kernel. Kernels, which include no library header, see only this.
//
// split: part(context, i, size) once for each i below size, on whichever thread comes; returns when all are done.
// together: the same, but at the same time on `size` threads, which may `meet`: none goes on before all have come.
//     Where they cannot all begin at once, part(context, 0, 1) runs alone.
// pipeline: part(context, stage, turn) for each stage and turn of a line: a stage's turns in order, each when the stage
//     before has made the same, and as long as the stage behind has made all but `slack` of those that it has made
//     itself. Returns when all are done.
struct Team {
    int64_t size;
    void (*split)(Team*, void (*part)(void* context, int64_t index, int64_t size), void* context);
    void (*together)(Team*, void (*part)(void* context, int64_t index, int64_t size), void* context);
    void (*meet)(Team*, int64_t index);
    void (*pipeline)(Team*, Line line, void (*part)(void* context, int64_t stage, int64_t turn), void* context);
};

}  // namespace fastwave
