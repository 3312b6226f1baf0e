#include "server/queue/requests.h"

#include <algorithm>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "server/backend/fingerprint.h"

namespace ckptd {
namespace {

// What a host process is told of a save beside its tensors, in bytes.
constexpr size_t kMaxArguments = size_t{16} << 20;
constexpr uint64_t kMaxBytes = uint64_t{1} << 50;

bool IsId(absl::string_view id) {
  return !id.empty() && id.size() <= 63 && std::all_of(id.begin(), id.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-';
  });
}

absl::Status InvalidName(const std::string& name, absl::string_view form) {
  return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_NAME",
                   absl::StrCat("name '", name.substr(0, 200), "': must have the form ", form,
                                ", with ids of 1 to 63 characters out of a-z A-Z 0-9 . _ -"),
                   {{"name", name.substr(0, 200)}});
}

absl::Status InvalidTensor(int index, absl::string_view why) {
  return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_TENSOR",
                   absl::StrCat("tensor ", index, ": ", why));
}

absl::Status LimitExceeded(absl::string_view what) {
  return MakeError(absl::StatusCode::kInvalidArgument, "LIMIT_EXCEEDED", what);
}

absl::Status TotalTooLarge() { return LimitExceeded("save: is larger than 2^50 bytes in all"); }

absl::Status AddSize(int index, int64_t size_bytes, uint64_t* total) {
  if (size_bytes < 0) return InvalidTensor(index, "its size_bytes is negative");
  if (static_cast<uint64_t>(size_bytes) > kMaxBytes) {
    return InvalidTensor(index, "is larger than 2^50 bytes");
  }
  *total += static_cast<uint64_t>(size_bytes);
  return *total > kMaxBytes ? TotalTooLarge() : absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> JobOfSave(const std::string& name) {
  const std::vector<std::string> parts = absl::StrSplit(name, '/');
  if (parts.size() != 4 || parts[0] != "jobs" || !IsId(parts[1]) || parts[2] != "saves" ||
      !IsId(parts[3])) {
    return InvalidName(name, "jobs/{job}/saves/{save}");
  }
  return parts[1];
}

absl::StatusOr<std::string> JobOfParent(const std::string& parent, bool optional) {
  if (parent == "jobs/-" || (optional && parent.empty())) return std::string();
  const std::vector<std::string> parts = absl::StrSplit(parent, '/');
  if (parts.size() != 2 || parts[0] != "jobs" || !IsId(parts[1])) {
    return InvalidName(parent, "jobs/{job}");
  }
  return parts[1];
}

int64_t CountTensors(const v1::BeginSaveRequest& request) {
  return int64_t{request.tensors_size()} + request.tensor_sizes_size();
}

absl::Status CheckTensors(const v1::BeginSaveRequest& request, int64_t max_tensors) {
  if (request.tensors_size() > 0 && request.tensor_sizes_size() > 0) {
    return InvalidTensor(0, "stands in `tensors`, and there are `tensor_sizes`; use one of them");
  }
  if (CountTensors(request) > max_tensors) {
    return LimitExceeded(absl::StrCat("save: announces ", CountTensors(request),
                                      " tensors, at most ", max_tensors,
                                      " are taken; split the state over several checkpoints"));
  }
  if (request.arguments().size() > kMaxArguments) {
    return LimitExceeded(absl::StrCat("save: its arguments have ", request.arguments().size(),
                                      " bytes, at most ", kMaxArguments, " are taken"));
  }
  if (request.object_bytes() < 0) return InvalidTensor(-1, "object_bytes is negative");
  absl::flat_hash_set<absl::string_view> names;
  uint64_t total = static_cast<uint64_t>(request.object_bytes());
  if (total > kMaxBytes) return TotalTooLarge();
  for (int i = 0; i < request.tensors_size(); ++i) {
    const v1::TensorSpec& tensor = request.tensors(i);
    if (tensor.name().empty()) return InvalidTensor(i, "has no name");
    if (!names.insert(tensor.name()).second) {
      return InvalidTensor(i, absl::StrCat("is named '", tensor.name(), "' like one before it"));
    }
    CKPTD_RETURN_IF_ERROR(AddSize(i, tensor.size_bytes(), &total));
  }
  for (int i = 0; i < request.tensor_sizes_size(); ++i) {
    CKPTD_RETURN_IF_ERROR(AddSize(i, request.tensor_sizes(i), &total));
  }
  return absl::OkStatus();
}

absl::Status CheckVisible(const v1::BeginSaveRequest& request) {
  if (v1::BeginSaveRequest::Visibility_IsValid(request.visible())) return absl::OkStatus();
  return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_REQUEST",
                   absl::StrCat("save: visible is ", static_cast<int>(request.visible()),
                                ", which this ckptd does not know; use WHEN_DURABLE or AT_RETURN"));
}

CheckpointSpec ToSpec(const v1::BeginSaveRequest& request) {
  CheckpointSpec spec;
  spec.object_bytes = static_cast<uint64_t>(request.object_bytes());
  spec.tensors.reserve(static_cast<size_t>(CountTensors(request)));
  for (const v1::TensorSpec& tensor : request.tensors()) {
    spec.tensors.push_back({tensor.name(),
                            tensor.dtype(),
                            {tensor.shape().begin(), tensor.shape().end()},
                            static_cast<uint64_t>(tensor.size_bytes())});
  }
  for (int i = 0; i < request.tensor_sizes_size(); ++i) {
    spec.tensors.push_back(
        {std::to_string(i), "", {}, static_cast<uint64_t>(request.tensor_sizes(i))});
  }
  for (const auto& [key, value] : request.options()) spec.options.emplace_back(key, value);
  return spec;
}

std::string Canonical(const v1::BeginSaveRequest& request) {
  v1::BeginSaveRequest copy = request;
  copy.clear_session_id();
  return CanonicalBytes(copy);
}

void Describe(const Image& image, v1::Image* told) {
  Describe({image.path(), image.size(), image.inode(), image.id(), image.cuts()}, told);
}

void Describe(const Pool::FreeImage& image, v1::Image* told) {
  told->set_path(image.path);
  told->set_size_bytes(static_cast<int64_t>(image.size));
  told->set_inode(image.inode);
  told->set_id(image.id);
  told->set_cuts(image.cuts);
}

absl::Status Stopping(absl::string_view what) {
  return MakeError(absl::StatusCode::kUnavailable, "DRAINING",
                   absl::StrCat(what, ": the daemon is ending; try again when it is back"));
}

absl::Status NotStaging(const v1::Save& save, absl::string_view verb) {
  return MakeError(absl::StatusCode::kFailedPrecondition, "SAVE_NOT_STAGING",
                   absl::StrCat(save.name(), ": cannot ", verb, " it: it is ",
                                v1::Save::State_Name(save.state()),
                                save.error().message().empty() ? "" : ", ", save.error().message()),
                   {{"name", save.name()}, {"state", v1::Save::State_Name(save.state())}});
}

}  // namespace ckptd
