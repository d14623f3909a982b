// Tests of the emulator itself, by name; each throws what is wrong.
#pragma once

#include <map>
#include <string>

namespace selftest {

const std::map<std::string, void (*)()>& all();

}  // namespace selftest
