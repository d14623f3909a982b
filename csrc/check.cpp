#include "check.h"

#include <stdexcept>
#include <string>

namespace fastwave {

void fail(const char* name, const char* expected, const char* got) {
    throw std::invalid_argument(std::string(name) + " must be " + expected + ", got " + got);
}

void fail(const char* name, const char* expected, long long got) { fail(name, expected, std::to_string(got).c_str()); }

}  // namespace fastwave
