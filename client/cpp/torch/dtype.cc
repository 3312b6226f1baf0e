#include "client/cpp/torch/dtype.h"

#include <array>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace ckptd {
namespace {

struct Classic {
  c10::ScalarType type;
  const char* dtype;
  const char* storage;
};

constexpr std::array<Classic, 12> kClassic = {{
    {c10::ScalarType::Double, "float64", "DoubleStorage"},
    {c10::ScalarType::Float, "float32", "FloatStorage"},
    {c10::ScalarType::Half, "float16", "HalfStorage"},
    {c10::ScalarType::BFloat16, "bfloat16", "BFloat16Storage"},
    {c10::ScalarType::Long, "int64", "LongStorage"},
    {c10::ScalarType::Int, "int32", "IntStorage"},
    {c10::ScalarType::Short, "int16", "ShortStorage"},
    {c10::ScalarType::Char, "int8", "CharStorage"},
    {c10::ScalarType::Byte, "uint8", "ByteStorage"},
    {c10::ScalarType::Bool, "bool", "BoolStorage"},
    {c10::ScalarType::ComplexDouble, "complex128", "ComplexDoubleStorage"},
    {c10::ScalarType::ComplexFloat, "complex64", "ComplexFloatStorage"},
}};

const Classic* FindClassic(c10::ScalarType type) {
  for (const Classic& classic : kClassic) {
    if (classic.type == type) return &classic;
  }
  return nullptr;
}

}  // namespace

std::string DtypeName(c10::ScalarType type) {
  if (const Classic* classic = FindClassic(type)) return classic->dtype;
  if (type == c10::ScalarType::ComplexHalf) return "complex32";
  // Types of later versions have the same name on both sides: Float8_e4m3fn, UInt16.
  return absl::AsciiStrToLower(c10::toString(type));
}

std::optional<c10::ScalarType> DtypeByName(const std::string& name) {
  for (int i = 0; i < static_cast<int>(c10::ScalarType::NumOptions); ++i) {
    const auto type = static_cast<c10::ScalarType>(i);
    if (type != c10::ScalarType::Undefined && DtypeName(type) == name) return type;
  }
  return std::nullopt;
}

std::optional<std::string> StorageClass(c10::ScalarType type) {
  if (const Classic* classic = FindClassic(type)) return classic->storage;
  return std::nullopt;
}

std::optional<c10::ScalarType> DtypeByStorageClass(const std::string& name) {
  for (const Classic& classic : kClassic) {
    if (name == classic.storage) return classic.type;
  }
  return std::nullopt;
}

}  // namespace ckptd
