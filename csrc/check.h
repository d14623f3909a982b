// The one way in which C++ rejects an argument. No standard header and nothing inline, so that kernels may use it too:
// an inline function compiled with AVX-512 flags could be the copy that the linker keeps for every CPU.
#pragma once

namespace fastwave {

// Throws std::invalid_argument("NAME must be EXPECTED, got GOT"), which Python sees as a ValueError.
[[noreturn]] void fail(const char* name, const char* expected, const char* got);
[[noreturn]] void fail(const char* name, const char* expected, long long got);

}  // namespace fastwave
