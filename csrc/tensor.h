// Tensors of any framework, taken through DLPack: C++ sees the real shape, dtype and device, and checks them itself.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>

namespace fastwave {

// The part of the DLPack C ABI (version 0, capsules named "dltensor") that is used here; the layout is the standard's.
namespace dlpack {

enum DeviceType : int32_t { kCPU = 1, kCUDA = 2, kCUDAHost = 3, kCUDAManaged = 13 };

enum TypeCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kComplex = 5, kBool = 6 };

struct Device {
    int32_t type;
    int32_t id;
    bool operator==(const Device&) const = default;
};

struct DataType {
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
    bool operator==(const DataType&) const = default;
};

struct DLTensor {
    void* data;
    Device device;
    int32_t ndim;
    DataType dtype;
    int64_t* shape;
    int64_t* strides;  // in elements; null: contiguous
    uint64_t byte_offset;
};

struct DLManagedTensor {
    DLTensor tensor;
    void* manager;
    void (*deleter)(DLManagedTensor*);
};

}  // namespace dlpack

using dlpack::DataType;

inline constexpr DataType float32{dlpack::kFloat, 32, 1};
inline constexpr DataType bfloat16{dlpack::kBfloat, 16, 1};
inline constexpr DataType int8{dlpack::kInt, 8, 1};
inline constexpr DataType int32{dlpack::kInt, 32, 1};
inline constexpr DataType int64{dlpack::kInt, 64, 1};

// Owns one DLPack tensor and gives it back at the end. Empty (false) stands for Python's None.
class Tensor {
public:
    Tensor() = default;
    explicit Tensor(dlpack::DLManagedTensor* managed) : managed_(managed) {}
    Tensor(Tensor&& other) noexcept : managed_(std::exchange(other.managed_, nullptr)) {}
    Tensor& operator=(Tensor&& other) noexcept {
        std::swap(managed_, other.managed_);
        return *this;
    }
    ~Tensor() {
        if (managed_ && managed_->deleter) managed_->deleter(managed_);
    }

    explicit operator bool() const { return managed_ != nullptr; }

    // Null for an absent tensor; `require` has checked that T is its type.
    template <class T>
    T* data() const {
        return managed_ ? reinterpret_cast<T*>(static_cast<char*>(view().data) + view().byte_offset) : nullptr;
    }
    int ndim() const { return view().ndim; }
    int64_t size(int dim) const { return view().shape[dim]; }
    int64_t stride(int dim) const;
    int64_t numel() const;
    DataType dtype() const { return view().dtype; }
    dlpack::Device device() const { return view().device; }
    bool contiguous() const;

    // As error messages print it: "float32 (2, 80, 100) on cpu", or "None".
    std::string describe() const;

private:
    const dlpack::DLTensor& view() const { return managed_->tensor; }

    dlpack::DLManagedTensor* managed_ = nullptr;
};

inline constexpr int64_t any = -1;  // a size that `require` leaves free

struct On {
    dlpack::DeviceType device = dlpack::kCPU;
    bool contiguous = true;
};

// Throws "mel must be a contiguous float32 tensor of shape (2, 80, any) on cpu, got ..." unless `tensor` is one.
void require(const Tensor& tensor, const char* name, DataType dtype, std::initializer_list<int64_t> shape, On on = {});

// Throws "y must be on the device of x (cuda:0), got cuda:1" unless it is.
void require_same_device(const Tensor& tensor, const char* name, const Tensor& other, const char* other_name);

}  // namespace fastwave
