#ifndef CKPTD_PLUGINS_WITH_FILE_H_
#define CKPTD_PLUGINS_WITH_FILE_H_

#include <cstdint>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "plugins/abi/plugin.h"
#include "plugins/torch/read/verify.h"

namespace ckptd {

// What a built-in plugin does with a file in `verify` or `inspect`: opens it, and has `function`
// read it; says what its error is as the ABI has it. CKPTD_NOT_FOUND where there is no file.
// Tells progress as it is read; a call that is cancelled fails with CKPTD_CANCELLED.
ckptd_code WithFile(const ckptd_host* host, ckptd_call* call, const std::string& path,
                    absl::FunctionRef<absl::Status(uint64_t size_bytes, ReadAt read)> function);

// Tells one tensor by host->found.
absl::Status TellFound(const ckptd_host* host, ckptd_call* call, const ckptd_tensor& tensor);

}  // namespace ckptd

#endif  // CKPTD_PLUGINS_WITH_FILE_H_
