#ifndef CKPTD_CLIENT_CPP_CONVERT_READ_H_
#define CKPTD_CLIENT_CPP_CONVERT_READ_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/cpp/convert/state.h"
#include "plugins/torch/read/torch_file.h"

namespace ckptd {

// Reads a state from the bytes of a file, which must outlive it. Nothing that the file names is
// run. Messages begin with `name`.

// A torch file's, which was opened on `bytes`. Tensors that are views with gaps are copied; those
// that are the same memory, seen in the same way, are one.
//
// NOT_CONVERTIBLE for what is no plain state: classes and functions of Python's, which it names,
// and keys that are no strings.
absl::StatusOr<State> ReadTorchState(const TorchFile& file, absl::string_view bytes);

// A safetensors file's: nested as ckptd.load has it.
absl::StatusOr<State> ReadSafetensorsState(const std::string& name, absl::string_view bytes);

}  // namespace ckptd

#endif  // CKPTD_CLIENT_CPP_CONVERT_READ_H_
