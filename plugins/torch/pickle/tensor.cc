#include "plugins/torch/pickle/tensor.h"

#include <algorithm>

#include "plugins/torch/read/dtypes.h"

namespace ckptd {
namespace {

// False where there are more than fit, or fewer than none.
bool CountElements(const std::vector<int64_t>& shape, int64_t* count) {
  *count = 1;
  for (const int64_t size : shape) {
    if (size < 0 || __builtin_mul_overflow(*count, size, count)) return false;
  }
  return true;
}

void Ints(const std::vector<int64_t>& values, PickleWriter& writer) {
  if (values.size() > 3) writer.Mark();
  for (const int64_t value : values) writer.Int(value);
  writer.Tuple(static_cast<int>(values.size()));
  if (!values.empty()) writer.Put(nullptr);
}

std::vector<int64_t> RowMajor(const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<int64_t>(1, shape[i]);
  }
  return strides;
}

void NoHooks(PickleWriter& writer) {
  writer.Global("collections", "OrderedDict");
  writer.Tuple(0);
  writer.Op(PickleOp::kReduce);
  writer.Put(nullptr);
}

void Call(int arguments, const void* identity, PickleWriter& writer) {
  writer.Tuple(arguments);
  writer.Put(nullptr);
  writer.Op(PickleOp::kReduce);
  writer.Put(identity);
}

}  // namespace

bool PickleTensor(const PickledTensor& tensor, PickleWriter& writer) {
  const TorchDtype* dtype = FindDtype(tensor.dtype);
  int64_t count = 0;
  uint64_t bytes = 0;
  if (dtype == nullptr || !CountElements(tensor.shape, &count) ||
      __builtin_mul_overflow(static_cast<uint64_t>(count), dtype->item_bytes, &bytes) ||
      bytes != tensor.size_bytes) {
    return false;
  }
  const bool untyped = dtype->storage.empty();
  if (tensor.is_parameter) writer.Global("torch._utils", "_rebuild_parameter");
  writer.Global("torch._utils", untyped ? "_rebuild_tensor_v3" : "_rebuild_tensor_v2");
  writer.Mark();
  writer.Mark();
  writer.String("storage");
  if (untyped) {
    writer.Global("torch.storage", "UntypedStorage");
  } else {
    writer.Global("torch", std::string(dtype->storage));
  }
  writer.String(tensor.storage);
  writer.String("cpu");
  writer.Int(untyped ? static_cast<int64_t>(bytes) : count);
  writer.Tuple(5);
  writer.Put(nullptr);
  writer.Op(PickleOp::kBinPersid);
  writer.Int(0);
  Ints(tensor.shape, writer);
  Ints(RowMajor(tensor.shape), writer);
  writer.Bool(tensor.requires_grad && !tensor.is_parameter);
  NoHooks(writer);
  if (untyped) writer.Global("torch", tensor.dtype);
  Call(6, tensor.is_parameter ? nullptr : tensor.identity, writer);
  if (tensor.is_parameter) {
    writer.Bool(tensor.requires_grad);
    NoHooks(writer);
    Call(3, tensor.identity, writer);
  }
  return true;
}

}  // namespace ckptd
