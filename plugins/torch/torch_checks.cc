#include "plugins/torch/torch_checks.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "plugins/torch/read/torch_file.h"
#include "plugins/torch/read/verify.h"
#include "plugins/with_file.h"
#include "proto/status/status_macros.h"

namespace ckptd {
namespace {

constexpr int32_t kWarning = 2;

absl::Status Tell(const ckptd_host* host, ckptd_call* call, const std::string& path,
                  const TorchTable& table) {
  for (size_t i = 0; i < table.values.size(); ++i) {
    if (table.values[i].kind != TorchValue::Kind::kTensor) continue;
    CKPTD_RETURN_IF_ERROR(TellTensor(host, call, i == 0 ? "data" : table.PathOf(i),
                                     table.tensors[table.values[i].tensor]));
  }
  if (table.unknown.empty()) return absl::OkStatus();
  const std::string warning = absl::StrCat(
      path,
      ": has objects that are not known without unpickling: ", absl::StrJoin(table.unknown, ", "));
  host->log(call, kWarning, warning.data(), warning.size());
  return absl::OkStatus();
}

}  // namespace

absl::Status TellTensor(const ckptd_host* host, ckptd_call* call, const std::string& name,
                        const TorchTensor& tensor) {
  const bool scalar = tensor.shape.empty();
  return TellFound(host, call,
                   {name.c_str(), tensor.dtype.c_str(), scalar ? nullptr : tensor.shape.data(),
                    scalar ? nullptr : tensor.strides.data(), tensor.shape.size(),
                    tensor.element_count() * tensor.item_bytes, nullptr});
}

ckptd_code VerifyTorch(const ckptd_host* host, ckptd_call* call, const char* path) {
  return WithFile(host, call, path, [path](uint64_t size_bytes, ReadAt read) {
    return VerifyBytes(path, size_bytes, read).status();
  });
}

ckptd_code InspectTorch(const ckptd_host* host, ckptd_call* call, const char* path) {
  return WithFile(host, call, path, [&](uint64_t size_bytes, ReadAt read) {
    CKPTD_ASSIGN_OR_RETURN(const TorchFile file, TorchFile::Open(path, size_bytes, read));
    CKPTD_ASSIGN_OR_RETURN(const TorchContents contents, ReadTorchContents(file));
    return Tell(host, call, path, contents.table);
  });
}

}  // namespace ckptd
