#include "tensor.h"

#include <iterator>

#include "check.h"

namespace fastwave {

namespace {

std::string name_of(DataType dtype) {
    static constexpr const char* kNames[] = {"int", "uint", "float", "handle", "bfloat", "complex", "bool"};
    std::string name = dtype.code < std::size(kNames) ? kNames[dtype.code] : "dtype" + std::to_string(dtype.code) + "_";
    if (dtype.code != dlpack::kBool) name += std::to_string(dtype.bits);
    return dtype.lanes == 1 ? name : name + "x" + std::to_string(dtype.lanes);
}

std::string name_of(dlpack::Device device) {
    switch (device.type) {
        case dlpack::kCPU: return "cpu";
        case dlpack::kCUDA: return "cuda:" + std::to_string(device.id);
        default: return "device type " + std::to_string(device.type);
    }
}

// (2, 80, any), written as Python writes a tuple.
std::string tuple(const int64_t* begin, const int64_t* end) {
    std::string text = "(";
    for (const int64_t* size = begin; size != end; ++size) {
        if (size != begin) text += ", ";
        text += *size == any ? "any" : std::to_string(*size);
    }
    return text + (end - begin == 1 ? ",)" : ")");
}

bool matches(const Tensor& tensor, DataType dtype, std::initializer_list<int64_t> shape, On on) {
    if (!tensor || tensor.dtype() != dtype || tensor.device().type != on.device) return false;
    if (tensor.ndim() != static_cast<int>(shape.size())) return false;
    int dim = 0;
    for (int64_t size : shape) {
        if (size != any && size != tensor.size(dim)) return false;
        ++dim;
    }
    return !on.contiguous || tensor.contiguous();
}

}  // namespace

int64_t Tensor::stride(int dim) const {
    if (view().strides) return view().strides[dim];
    int64_t stride = 1;
    for (int i = ndim() - 1; i > dim; --i) stride *= size(i);
    return stride;
}

int64_t Tensor::numel() const {
    int64_t count = 1;
    for (int i = 0; i < ndim(); ++i) count *= size(i);
    return count;
}

bool Tensor::contiguous() const {
    if (!view().strides || numel() == 0) return true;
    int64_t expected = 1;
    for (int i = ndim() - 1; i >= 0; --i) {
        if (size(i) != 1 && stride(i) != expected) return false;  // the stride of a single element means nothing
        expected *= size(i);
    }
    return true;
}

std::string Tensor::describe() const {
    if (!managed_) return "None";
    std::string text = contiguous() ? "" : "non-contiguous ";
    return text + name_of(dtype()) + " " + tuple(view().shape, view().shape + ndim()) + " on " + name_of(device());
}

void require(const Tensor& tensor, const char* name, DataType dtype, std::initializer_list<int64_t> shape, On on) {
    if (matches(tensor, dtype, shape, on)) return;
    std::string expected = on.contiguous ? "a contiguous " : "a ";
    expected += name_of(dtype) + " tensor of shape " + tuple(shape.begin(), shape.end()) + " on ";
    expected += on.device == dlpack::kCUDA ? "cuda" : name_of(dlpack::Device{on.device, 0});
    fail(name, expected.c_str(), tensor.describe().c_str());
}

void require_same_device(const Tensor& tensor, const char* name, const Tensor& other, const char* other_name) {
    if (tensor.device() == other.device()) return;
    std::string expected = std::string("on the device of ") + other_name + " (" + name_of(other.device()) + ")";
    fail(name, expected.c_str(), name_of(tensor.device()).c_str());
}

}  // namespace fastwave
