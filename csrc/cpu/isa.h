// Which build of the CPU kernels runs: the best that this machine has, or the one that FASTWAVE_ISA names.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace fastwave {

const Kernels& kernels();

std::vector<std::string> isas();           // what this machine can run, slowest first
void select_isa(const std::string& name);  // for tests: from now on, in every thread; throws if not in isas()

}  // namespace fastwave
