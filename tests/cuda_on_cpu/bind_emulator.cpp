// The module _emulator, in the same file as the emulated _cuda: how its launches run, and its own tests.
#include <pybind11/pybind11.h>

#include "emulator.h"
#include "selftest.h"

namespace py = pybind11;

PYBIND11_MODULE(_emulator, m) {
    m.def(
        "configure",
        [](uint64_t seed, int sm, int sm_count, int shared_bytes, uint64_t nanoseconds_per_round) {
            emulator::settings = {.seed = seed,
                                  .sm = sm,
                                  .sm_count = sm_count,
                                  .shared_bytes = shared_bytes,
                                  .nanoseconds_per_round = nanoseconds_per_round};
        },
        py::arg("seed") = 0, py::arg("sm") = 90, py::arg("sm_count") = 8, py::arg("shared_bytes") = 227 * 1024,
        py::arg("nanoseconds_per_round") = 100'000,
        "The machine of the launches to come, and the order in which its threads take turns.");
    m.def("selftest", [](const std::string& name) { selftest::all().at(name)(); }, py::arg("name"));
}
