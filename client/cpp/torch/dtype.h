#ifndef CKPTD_CLIENT_CPP_TORCH_DTYPE_H_
#define CKPTD_CLIENT_CPP_TORCH_DTYPE_H_

#include <c10/core/ScalarType.h>

#include <optional>
#include <string>

namespace ckptd {

// As Python names it after "torch.": "float32", "float8_e4m3fn".
std::string DtypeName(c10::ScalarType type);

// The reverse. None where this LibTorch has no such type.
std::optional<c10::ScalarType> DtypeByName(const std::string& name);

// The class that stands for a storage of this type in a pickle, as "FloatStorage" in module torch.
// None for types newer than these classes, which go as UntypedStorage and by _rebuild_tensor_v3.
std::optional<std::string> StorageClass(c10::ScalarType type);

std::optional<c10::ScalarType> DtypeByStorageClass(const std::string& name);

}  // namespace ckptd

#endif  // CKPTD_CLIENT_CPP_TORCH_DTYPE_H_
