// Threads for the rows of a batch.
#pragma once

#include <cstdint>
#include <functional>

namespace fastwave {

// Calls work(item) for items 0..count-1 on up to `threads` threads, the caller among them; returns when all are done.
// What a call throws ends the rest, and comes out here. While the caller has nothing left to do but wait, it calls
// `idle` now and then.
void share(int64_t threads, int64_t count, const std::function<void(int64_t)>& work, const std::function<void()>& idle);

}  // namespace fastwave
