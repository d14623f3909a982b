#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>

#include "check.h"

namespace fastwave {

#if defined(__x86_64__)
namespace baseline {
const Kernels& kernels();
}
namespace avx2 {
const Kernels& kernels();
}
namespace avx512 {
const Kernels& kernels();
}
namespace avx512vnni {
const Kernels& kernels();
}
#elif defined(__aarch64__)
namespace neon {
const Kernels& kernels();
}
#else
namespace baseline {
const Kernels& kernels();
}
#endif

namespace {

// Slowest first. The compiler's query also asks whether the operating system saves the registers.
std::vector<const Kernels*> available() {
#if defined(__x86_64__)
    std::vector<const Kernels*> tables = {&baseline::kernels()};
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return tables;
    tables.push_back(&avx2::kernels());
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        return tables;
    tables.push_back(&avx512::kernels());
    if (!__builtin_cpu_supports("avx512vnni") || !__builtin_cpu_supports("avx512bf16")) return tables;
    tables.push_back(&avx512vnni::kernels());
    return tables;
#elif defined(__aarch64__)
    return {&neon::kernels()};
#else
    return {&baseline::kernels()};
#endif
}

const Kernels& find(const char* argument, const std::string& name) {
    std::string names;
    for (const Kernels* table : available()) {
        if (table->isa == name) return *table;
        names += (names.empty() ? "" : ", ") + std::string(table->isa);
    }
    fail(argument, ("one of " + names + " on this machine").c_str(), name.c_str());
}

std::atomic<const Kernels*> selected = nullptr;

}  // namespace

const Kernels& kernels() {
    const Kernels* table = selected.load(std::memory_order_acquire);
    if (!table) {
        const char* forced = std::getenv("FASTWAVE_ISA");
        table = forced && *forced ? &find("FASTWAVE_ISA", forced) : available().back();
        selected.store(table, std::memory_order_release);
    }
    return *table;
}

std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (const Kernels* table : available()) names.emplace_back(table->isa);
    return names;
}

void select_isa(const std::string& name) { selected.store(&find("isa", name), std::memory_order_release); }

}  // namespace fastwave
