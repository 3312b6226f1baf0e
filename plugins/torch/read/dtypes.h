#ifndef CKPTD_PLUGINS_TORCH_READ_DTYPES_H_
#define CKPTD_PLUGINS_TORCH_READ_DTYPES_H_

#include <cstdint>

#include "absl/strings/string_view.h"

namespace ckptd {

// A dtype of torch's.
struct TorchDtype {
  absl::string_view name;  // "float32"
  absl::string_view
      storage;  // "FloatStorage", in module torch; empty for dtypes without such a class
  uint64_t item_bytes = 0;
};

// Null where torch has none of that name, or had none when this was written.
const TorchDtype* FindDtype(absl::string_view name);
const TorchDtype* FindDtypeOfStorage(absl::string_view storage);

}  // namespace ckptd

#endif  // CKPTD_PLUGINS_TORCH_READ_DTYPES_H_
