#include "plugins/torch/read/dtypes.h"

#include <array>

namespace ckptd {
namespace {

constexpr std::array<TorchDtype, 30> kDtypes = {{
    {"float64", "DoubleStorage", 8},
    {"float32", "FloatStorage", 4},
    {"float16", "HalfStorage", 2},
    {"bfloat16", "BFloat16Storage", 2},
    {"int64", "LongStorage", 8},
    {"int32", "IntStorage", 4},
    {"int16", "ShortStorage", 2},
    {"int8", "CharStorage", 1},
    {"uint8", "ByteStorage", 1},
    {"bool", "BoolStorage", 1},
    {"complex128", "ComplexDoubleStorage", 16},
    {"complex64", "ComplexFloatStorage", 8},
    {"qint8", "QInt8Storage", 1},
    {"quint8", "QUInt8Storage", 1},
    {"qint32", "QInt32Storage", 4},
    {"quint4x2", "QUInt4x2Storage", 1},
    {"quint2x4", "QUInt2x4Storage", 1},
    {"complex32", "", 4},
    {"uint16", "", 2},
    {"uint32", "", 4},
    {"uint64", "", 8},
    {"float8_e4m3fn", "", 1},
    {"float8_e4m3fnuz", "", 1},
    {"float8_e5m2", "", 1},
    {"float8_e5m2fnuz", "", 1},
    {"float8_e8m0fnu", "", 1},
    {"float4_e2m1fn_x2", "", 1},
    {"bits8", "", 1},
    {"bits16", "", 2},
    {"bits4x2", "", 1},
}};

}  // namespace

const TorchDtype* FindDtype(absl::string_view name) {
  for (const TorchDtype& dtype : kDtypes) {
    if (dtype.name == name) return &dtype;
  }
  return nullptr;
}

const TorchDtype* FindDtypeOfStorage(absl::string_view storage) {
  if (storage.empty()) return nullptr;
  for (const TorchDtype& dtype : kDtypes) {
    if (dtype.storage == storage) return &dtype;
  }
  return nullptr;
}

}  // namespace ckptd
