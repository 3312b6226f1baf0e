#include "client/cpp/torch/capture.h"

#include <ATen/ATen.h>

#include <exception>
#include <limits>
#include <unordered_map>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "client/cpp/torch/dtype.h"
#include "plugins/torch/pickle/writer.h"
#include "proto/status/status_macros.h"

namespace ckptd {
namespace {

// Deeper nesting could overflow the stack.
constexpr int kMaxDepth = 1000;

class Capturer {
 public:
  absl::StatusOr<Capture> Run(const c10::IValue& value) {
    CKPTD_RETURN_IF_ERROR(Value(value));
    capture_.object = pickle_.Finish();
    return std::move(capture_);
  }

 private:
  // A storage as it is written.
  struct Stored {
    int index = 0;  // In Capture::tensors.
    c10::ScalarType dtype = c10::ScalarType::Undefined;
    int64_t numel = 0;
  };

  absl::Status Error(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat("checkpoint", place_, " ", what));
  }

  absl::Status Value(const c10::IValue& value);
  absl::Status Scalar(const c10::IValue& value);
  absl::Status String(const std::string& text);
  absl::Status List(const c10::IValue& value);
  absl::Status Dict(const c10::IValue& value);
  absl::Status Tuple(const c10::IValue& value);
  absl::Status Tensor(const at::Tensor& tensor);
  absl::Status Check(const at::Tensor& tensor) const;
  absl::StatusOr<Stored> Store(const at::Tensor& tensor);
  void PersistentId(const Stored& stored, bool untyped);
  void Ints(c10::IntArrayRef values);

  // Captures `value` as the part of the present one called `name`.
  absl::Status Part(const std::string& name, const c10::IValue& value) {
    const size_t length = place_.size();
    absl::StrAppend(&place_, "[", name, "]");
    CKPTD_RETURN_IF_ERROR(Value(value));
    place_.resize(length);
    return absl::OkStatus();
  }

  PickleWriter pickle_;
  Capture capture_;
  std::string place_;  // Of the present value: "[model][weight]".
  int depth_ = 0;
  std::unordered_map<const c10::StorageImpl*, Stored> stored_;
  std::vector<c10::Storage> originals_;  // Keeps the keys of stored_ from being used again.
};

absl::Status Capturer::Value(const c10::IValue& value) {
  if (++depth_ > kMaxDepth) return Error("is nested too deeply");
  absl::Status status;
  if (value.isTensor()) {
    status = Tensor(value.toTensor());
  } else if (value.isList()) {
    status = List(value);
  } else if (value.isGenericDict()) {
    status = Dict(value);
  } else if (value.isTuple()) {
    status = Tuple(value);
  } else {
    status = Scalar(value);
  }
  --depth_;
  return status;
}

absl::Status Capturer::Scalar(const c10::IValue& value) {
  if (value.isNone()) {
    pickle_.None();
  } else if (value.isBool()) {
    pickle_.Bool(value.toBool());
  } else if (value.isInt()) {
    pickle_.Int(value.toInt());
  } else if (value.isDouble()) {
    pickle_.Float(value.toDouble());
  } else if (value.isString()) {
    return String(value.toStringRef());
  } else if (value.isComplexDouble()) {
    const c10::complex<double> number = value.toComplexDouble();
    pickle_.Global("__builtin__", "complex");
    pickle_.Float(number.real());
    pickle_.Float(number.imag());
    pickle_.Tuple(2);
    pickle_.Op(PickleOp::kReduce);
  } else if (value.isDevice()) {
    const c10::Device device = value.toDevice();
    pickle_.Global("torch", "device");
    pickle_.String(c10::DeviceTypeName(device.type(), /*lower_case=*/true));
    if (device.has_index()) pickle_.Int(device.index());
    pickle_.Tuple(device.has_index() ? 2 : 1);
    pickle_.Op(PickleOp::kReduce);
  } else {
    return Error(absl::StrCat("is a ", value.tagKind(), ", which a checkpoint cannot hold"));
  }
  return absl::OkStatus();
}

absl::Status Capturer::String(const std::string& text) {
  if (text.size() > std::numeric_limits<uint32_t>::max()) {
    return Error("is a string of more than 4 GiB");
  }
  pickle_.String(text);
  return absl::OkStatus();
}

absl::Status Capturer::List(const c10::IValue& value) {
  const void* identity = value.internalToPointer();
  if (pickle_.Get(identity)) return absl::OkStatus();
  pickle_.EmptyList(identity);
  const c10::ArrayRef<c10::IValue> items = value.toListRef();
  if (items.empty()) return absl::OkStatus();
  pickle_.Mark();
  for (size_t i = 0; i < items.size(); ++i) {
    CKPTD_RETURN_IF_ERROR(Part(absl::StrCat(i), items[i]));
  }
  pickle_.Op(PickleOp::kAppends);
  return absl::OkStatus();
}

absl::Status Capturer::Dict(const c10::IValue& value) {
  const void* identity = value.internalToPointer();
  if (pickle_.Get(identity)) return absl::OkStatus();
  pickle_.EmptyDict(identity);
  const auto dict = value.toGenericDict();
  if (dict.empty()) return absl::OkStatus();
  pickle_.Mark();
  for (const auto& item : dict) {
    CKPTD_RETURN_IF_ERROR(Value(item.key()));
    const std::string name = item.key().isString()
                                 ? absl::Utf8SafeCHexEscape(item.key().toStringRef())
                             : item.key().isInt() ? absl::StrCat(item.key().toInt())
                                                  : "?";
    CKPTD_RETURN_IF_ERROR(Part(name, item.value()));
  }
  pickle_.Op(PickleOp::kSetItems);
  return absl::OkStatus();
}

absl::Status Capturer::Tuple(const c10::IValue& value) {
  const void* identity = value.internalToPointer();
  if (pickle_.Get(identity)) return absl::OkStatus();
  const auto& items = value.toTupleRef().elements();
  const int size = static_cast<int>(items.size());
  if (size > 3) pickle_.Mark();
  for (int i = 0; i < size; ++i) {
    CKPTD_RETURN_IF_ERROR(Part(absl::StrCat(i), items[static_cast<size_t>(i)]));
  }
  pickle_.Tuple(size);
  if (size > 0) pickle_.Put(identity);
  return absl::OkStatus();
}

absl::Status Capturer::Check(const at::Tensor& tensor) const {
  if (tensor.layout() != c10::kStrided) return Error("is not strided: make it so by to_dense()");
  if (tensor.is_quantized()) return Error("is quantized: save int_repr(), scale and zero point");
  if (tensor.is_meta()) return Error("is on the meta device: it has no data to save");
  if (!tensor.has_storage()) return Error("has no storage to save");
  return absl::OkStatus();
}

absl::StatusOr<Capturer::Stored> Capturer::Store(const at::Tensor& tensor) {
  const c10::Storage& original = tensor.storage();
  const c10::ScalarType dtype = tensor.scalar_type();
  const auto known = stored_.find(original.unsafeGetStorageImpl());
  if (known != stored_.end()) {
    if (known->second.dtype == dtype) return known->second;
    return Error(absl::StrCat("is ", DtypeName(dtype), ", but shares its memory with a tensor of ",
                              DtypeName(known->second.dtype), ": clone one of them"));
  }
  const int64_t itemsize = tensor.element_size();
  Stored stored;
  stored.index = static_cast<int>(capture_.tensors.size());
  stored.dtype = dtype;
  stored.numel = static_cast<int64_t>(original.nbytes()) / itemsize;

  c10::Storage storage = original;
  if (!tensor.device().is_cpu()) {
    // The whole storage as one tensor, so that views of it stay views.
    storage = at::empty({0}, tensor.options())
                  .set_(original, 0, {stored.numel}, {1})
                  .to(at::kCPU)
                  .storage();
  }
  TensorView view;
  view.name = absl::StrCat(stored.index);
  view.dtype = DtypeName(dtype);
  view.shape = {stored.numel};
  view.data = static_cast<const void*>(storage.data());
  view.size_bytes = static_cast<size_t>(stored.numel * itemsize);
  capture_.tensors.push_back(std::move(view));
  capture_.storages.push_back(std::move(storage));
  originals_.push_back(original);
  stored_.emplace(original.unsafeGetStorageImpl(), stored);
  return stored;
}

void Capturer::PersistentId(const Stored& stored, bool untyped) {
  const TensorView& view = capture_.tensors[static_cast<size_t>(stored.index)];
  pickle_.Mark();
  pickle_.String("storage");
  if (untyped) {
    pickle_.Global("torch.storage", "UntypedStorage");
  } else {
    pickle_.Global("torch", *StorageClass(stored.dtype));
  }
  pickle_.String(view.name);
  pickle_.String("cpu");
  pickle_.Int(untyped ? static_cast<int64_t>(view.size_bytes) : stored.numel);
  pickle_.Tuple(5);
  pickle_.Put(nullptr);
  pickle_.Op(PickleOp::kBinPersid);
}

void Capturer::Ints(c10::IntArrayRef values) {
  if (values.size() > 3) pickle_.Mark();
  for (int64_t value : values) pickle_.Int(value);
  pickle_.Tuple(static_cast<int>(values.size()));
  if (!values.empty()) pickle_.Put(nullptr);
}

// torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, metadata]),
// or, for types newer than the storage classes, _v3 with the dtype before the metadata.
absl::Status Capturer::Tensor(const at::Tensor& tensor) {
  if (!tensor.defined()) {
    pickle_.None();
    return absl::OkStatus();
  }
  const void* identity = tensor.unsafeGetTensorImpl();
  if (pickle_.Get(identity)) return absl::OkStatus();
  CKPTD_RETURN_IF_ERROR(Check(tensor));
  const bool untyped = !StorageClass(tensor.scalar_type()).has_value();
  CKPTD_ASSIGN_OR_RETURN(Stored stored, Store(tensor));
  pickle_.Global("torch._utils", untyped ? "_rebuild_tensor_v3" : "_rebuild_tensor_v2");
  pickle_.Mark();
  PersistentId(stored, untyped);
  pickle_.Int(tensor.storage_offset());
  Ints(tensor.sizes());
  Ints(tensor.strides());
  pickle_.Bool(tensor.requires_grad());
  pickle_.Global("collections", "OrderedDict");
  pickle_.Tuple(0);
  pickle_.Op(PickleOp::kReduce);
  pickle_.Put(nullptr);
  if (untyped) pickle_.Global("torch", DtypeName(tensor.scalar_type()));
  if (tensor.is_conj() || tensor.is_neg()) {
    pickle_.EmptyDict(nullptr);
    for (const auto& [name, set] :
         {std::pair{"conj", tensor.is_conj()}, {"neg", tensor.is_neg()}}) {
      if (!set) continue;
      pickle_.String(name);
      pickle_.Bool(true);
      pickle_.Op(PickleOp::kSetItem);
    }
  }
  pickle_.Tuple(/*size=*/7);
  pickle_.Put(nullptr);
  pickle_.Op(PickleOp::kReduce);
  pickle_.Put(identity);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Capture> CaptureObject(const c10::IValue& value) {
  try {
    return Capturer().Run(value);
  } catch (const c10::Error& error) {  // LibTorch throws; its what() ends in a stack trace.
    return absl::InternalError(
        absl::StrCat("checkpoint: LibTorch: ", error.what_without_backtrace()));
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("checkpoint: LibTorch: ", error.what()));
  }
}

}  // namespace ckptd
