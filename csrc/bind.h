// What both extension modules need from Python: taking tensors, and letting Ctrl-C stop a long kernel.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <utility>

#include "check.h"
#include "tensor.h"

namespace fastwave {

namespace py = pybind11;

// Takes a DLPack capsule, or an object that makes one; None gives an empty Tensor.
inline Tensor take(py::handle object, const char* name) {
    if (object.is_none()) return {};
    py::object capsule = py::reinterpret_borrow<py::object>(object);
    try {
        if (py::hasattr(object, "__dlpack__")) capsule = object.attr("__dlpack__")();
    } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_BufferError)) throw;  // the framework's way to say that it cannot share this tensor
        fail(name, "a plain tensor that needs no gradient", py::cast<std::string>(py::str(error.value())).c_str());
    }
    if (!PyCapsule_CheckExact(capsule.ptr())) {
        std::string type = py::cast<std::string>(py::type::of(object).attr("__name__"));
        throw py::type_error(std::string(name) + " must be a tensor, got " + type);
    }
    if (!PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
        const char* got = PyCapsule_GetName(capsule.ptr());
        PyErr_Clear();
        fail(name, "an unused DLPack capsule \"dltensor\"", got ? got : "one without a name");
    }
    void* managed = PyCapsule_GetPointer(capsule.ptr(), "dltensor");
    if (PyCapsule_SetName(capsule.ptr(), "used_dltensor") != 0) throw py::error_already_set();
    return Tensor(static_cast<dlpack::DLManagedTensor*>(managed));
}

// Runs a kernel without the GIL. The kernel calls `poll(context)` now and then and returns early when that is true;
// then `run` throws what Python's signal handler raised, which for Ctrl-C is KeyboardInterrupt.
//
//     Interrupt interrupt;
//     params.poll = &Interrupt::poll;
//     params.poll_context = &interrupt;
//     interrupt.run([&] { kernels().wavenet_sample(params); });
class Interrupt {
public:
    // Cheap, and safe in every thread; only the one that called `run` looks for signals, at most every 50 ms.
    static bool poll(void* context) { return static_cast<Interrupt*>(context)->stop(); }

    template <class Kernel>
    void run(Kernel&& kernel) {
        {
            Released released(thread_);
            std::forward<Kernel>(kernel)();
        }
        if (stopped_) throw py::error_already_set();
    }

private:
    using Clock = std::chrono::steady_clock;

    // py::gil_scoped_release hides the thread state, which `stop` needs: the exception is stored in it.
    struct Released {
        explicit Released(PyThreadState*& thread) : thread(thread) { thread = PyEval_SaveThread(); }
        ~Released() { PyEval_RestoreThread(thread); }
        PyThreadState*& thread;
    };

    bool stop() {
        if (stopped_.load(std::memory_order_relaxed)) return true;
        if (std::this_thread::get_id() != owner_) return false;
        Clock::time_point now = Clock::now();
        if (now - last_ < std::chrono::milliseconds(50)) return false;
        last_ = now;
        PyEval_RestoreThread(thread_);
        bool signalled = PyErr_CheckSignals() != 0;
        thread_ = PyEval_SaveThread();
        if (signalled) stopped_ = true;
        return signalled;
    }

    std::thread::id owner_ = std::this_thread::get_id();
    Clock::time_point last_ = Clock::now();
    PyThreadState* thread_ = nullptr;
    std::atomic<bool> stopped_ = false;
};

}  // namespace fastwave
