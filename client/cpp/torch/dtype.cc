#include "client/cpp/torch/dtype.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "plugins/torch/read/dtypes.h"

namespace ckptd {

std::string DtypeName(c10::ScalarType type) {
  // LibTorch calls a type as its storage is called: Float.
  const TorchDtype* dtype = FindDtypeOfStorage(absl::StrCat(c10::toString(type), "Storage"));
  if (dtype != nullptr) return std::string(dtype->name);
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
  const TorchDtype* dtype = FindDtype(DtypeName(type));
  if (dtype == nullptr || dtype->storage.empty()) return std::nullopt;
  return std::string(dtype->storage);
}

std::optional<c10::ScalarType> DtypeByStorageClass(const std::string& name) {
  const TorchDtype* dtype = FindDtypeOfStorage(name);
  return dtype == nullptr ? std::nullopt : DtypeByName(std::string(dtype->name));
}

}  // namespace ckptd
