#ifndef CKPTD_PLUGINS_TORCH_TORCH_CHECKS_H_
#define CKPTD_PLUGINS_TORCH_TORCH_CHECKS_H_

#include <string>

#include "absl/status/status.h"
#include "plugins/abi/plugin.h"
#include "plugins/torch/read/torch_tensor.h"

namespace ckptd {

// `verify` and `inspect` of the backends torch and xla, for whatever file of torch.save. They
// unpickle nothing. inspect tells a tensor for each place that has one, tied or not, by the keys
// that lead there: "model.weight". What is in objects of classes that are not known is told, too,
// and a warning names these.
ckptd_code VerifyTorch(const ckptd_host* host, ckptd_call* call, const char* path);
ckptd_code InspectTorch(const ckptd_host* host, ckptd_call* call, const char* path);

// Tells a tensor of a torch file by host->found.
absl::Status TellTensor(const ckptd_host* host, ckptd_call* call, const std::string& name,
                        const TorchTensor& tensor);

}  // namespace ckptd

#endif  // CKPTD_PLUGINS_TORCH_TORCH_CHECKS_H_
