#include "plugins/xser/xser_checks.h"

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "plugins/torch/read/torch_file.h"
#include "plugins/torch/read/verify.h"
#include "plugins/torch/read/zip_directory.h"
#include "plugins/torch/torch_checks.h"
#include "plugins/with_file.h"
#include "proto/status/status_macros.h"

namespace ckptd {
namespace {

constexpr absl::string_view kReference = "torch_xla.utils.serialization.TensorReference";

struct Reference {
  std::string name;
  int64_t tid = 0;
};

// The references in a table, in its order.
std::vector<Reference> ReferencesIn(const TorchTable& table) {
  // A reference that is in several places has its number in the first alone.
  std::map<const PickleNode*, int64_t> tids;
  for (const TorchValue& value : table.values) {
    const TorchValue& parent = table.values[value.parent];
    if (value.kind == TorchValue::Kind::kInt && parent.what == kReference) {
      tids.emplace(parent.node, value.node->integer);
    }
  }
  std::vector<Reference> references;
  for (size_t i = 0; i < table.values.size(); ++i) {
    const TorchValue& value = table.values[i];
    if (value.kind != TorchValue::Kind::kObject || value.what != kReference) continue;
    const auto tid = tids.find(value.node);
    if (tid == tids.end()) continue;
    references.push_back({i == 0 ? "data" : table.PathOf(i), tid->second});
  }
  return references;
}

absl::StatusOr<TorchContents> ReadContents(const std::string& path, uint64_t size_bytes,
                                           ReadAt read) {
  CKPTD_ASSIGN_OR_RETURN(const TorchFile file, TorchFile::Open(path, size_bytes, read));
  return ReadTorchContents(file);
}

// Has `function` read the file of one tensor.
absl::Status WithTensor(
    const ckptd_host* host, ckptd_call* call, const char* path, int64_t tid,
    absl::FunctionRef<absl::Status(const std::string& file, uint64_t size_bytes, ReadAt read)>
        function) {
  const std::string file = absl::StrCat(path, ".tensors/tensor_", tid, ".pt");
  absl::Status status;
  const ckptd_code code = WithFile(host, call, file, [&](uint64_t size_bytes, ReadAt read) {
    status = function(file, size_bytes, read);
    return status;
  });
  if (code == CKPTD_OK || !status.ok()) return status;
  return CorruptCheckpoint(path, 0, absl::StrCat("refers to ", file, ", which cannot be read"));
}

}  // namespace

ckptd_code VerifyXser(const ckptd_host* host, ckptd_call* call, const char* path) {
  return WithFile(host, call, path, [&](uint64_t size_bytes, ReadAt read) -> absl::Status {
    CKPTD_RETURN_IF_ERROR(VerifyBytes(path, size_bytes, read).status());
    CKPTD_ASSIGN_OR_RETURN(const TorchContents contents, ReadContents(path, size_bytes, read));
    std::set<int64_t> done;
    for (const Reference& reference : ReferencesIn(contents.table)) {
      if (!done.insert(reference.tid).second) continue;
      CKPTD_RETURN_IF_ERROR(WithTensor(host, call, path, reference.tid,
                                       [](const std::string& file, uint64_t bytes, ReadAt from) {
                                         return VerifyBytes(file, bytes, from).status();
                                       }));
    }
    return absl::OkStatus();
  });
}

ckptd_code InspectXser(const ckptd_host* host, ckptd_call* call, const char* path) {
  return WithFile(host, call, path, [&](uint64_t size_bytes, ReadAt read) -> absl::Status {
    CKPTD_ASSIGN_OR_RETURN(const TorchContents contents, ReadContents(path, size_bytes, read));
    for (const Reference& reference : ReferencesIn(contents.table)) {
      CKPTD_RETURN_IF_ERROR(WithTensor(
          host, call, path, reference.tid,
          [&](const std::string& file, uint64_t bytes, ReadAt from) -> absl::Status {
            CKPTD_ASSIGN_OR_RETURN(const TorchContents tensor, ReadContents(file, bytes, from));
            for (const TorchTensor& one : tensor.table.tensors) {
              CKPTD_RETURN_IF_ERROR(TellTensor(host, call, reference.name, one));
            }
            return absl::OkStatus();
          }));
    }
    return absl::OkStatus();
  });
}

}  // namespace ckptd
