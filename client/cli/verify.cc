// ckptctl verify: checks files, each on its own.

#include "client/cpp/core/verify.h"

#include <google/protobuf/struct.pb.h>

#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/cli/commands.h"
#include "client/cli/file_kind.h"
#include "client/cli/text.h"
#include "plugins/safetensors/safetensors_file.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"

namespace ckptd::cli {
namespace {

// What the daemon says has no numbers.
absl::StatusOr<VerifiedCheckpoint> AskDaemon(Daemon& daemon, const Options& options,
                                             const std::string& path) {
  v1::VerifyCheckpointRequest request;
  request.set_path(PathForDaemon(path));
  request.set_backend(options.backend);
  v1::VerifyCheckpointResponse response;
  CKPTD_RETURN_IF_ERROR(daemon.Call(&Daemon::Stub::VerifyCheckpoint, request, &response,
                                    options.timeout.value_or(absl::InfiniteDuration())));
  return VerifiedCheckpoint();
}

absl::StatusOr<VerifiedCheckpoint> VerifyFile(const std::string& path) {
  CKPTD_ASSIGN_OR_RETURN(const CheckpointFile file, CheckpointFile::Open(path));
  CKPTD_ASSIGN_OR_RETURN(const FileKind kind, KindOf(file));
  if (kind != FileKind::kSafetensors) return VerifyCheckpoint(file);
  return VerifySafetensors(path, file.size_bytes(), FileReader(&file));
}

// One line for people.
std::string Line(const std::string& path, const absl::StatusOr<VerifiedCheckpoint>& result) {
  if (result.ok() && result->size_bytes == 0) return absl::StrCat(Printable(path), "  ok\n");
  if (result.ok()) {
    return absl::StrCat(Printable(path), "  ok  ", result->record_count, " records  ",
                        result->size_bytes, " bytes\n");
  }
  const std::string message(result.status().message());
  return absl::StrCat(Printable(absl::StrContains(message, path) ? message : path + ": " + message),
                      "\n");
}

// Numbers as text, as JSON has them for the 64-bit fields of the daemon's answers.
google::protobuf::Struct ToJson(const std::string& path,
                                const absl::StatusOr<VerifiedCheckpoint>& result) {
  google::protobuf::Struct file;
  auto& fields = *file.mutable_fields();
  fields["path"].set_string_value(path);
  fields["ok"].set_bool_value(result.ok());
  if (result.ok() && result->size_bytes == 0) return file;
  if (result.ok()) {
    fields["records"].set_string_value(absl::StrCat(result->record_count));
    fields["bytes"].set_string_value(absl::StrCat(result->size_bytes));
    return file;
  }
  const std::string reason = ReasonOf(result.status());
  fields["reason"].set_string_value(
      reason.empty() ? absl::StatusCodeToString(result.status().code()) : reason);
  fields["message"].set_string_value(std::string(result.status().message()));
  for (const auto& [key, value] : MetadataOf(result.status())) {
    fields[key].set_string_value(value);
  }
  return file;
}

}  // namespace

absl::Status RunVerify(Daemon& daemon, const Options& options, Output& out) {
  google::protobuf::Struct json;
  auto* files = (*json.mutable_fields())["files"].mutable_list_value();
  size_t damaged = 0;
  for (const std::string& path : options.files) {
    const absl::StatusOr<VerifiedCheckpoint> result =
        options.backend.empty() ? VerifyFile(path) : AskDaemon(daemon, options, path);
    if (IsNoDaemon(result.status())) return result.status();
    if (!result.ok()) ++damaged;
    if (options.json) {
      *files->add_values()->mutable_struct_value() = ToJson(path, result);
    } else {
      out.Write(Line(path, result));
    }
  }
  if (options.json) out.WriteJson(json);
  if (damaged == 0) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat(damaged, " of ", options.files.size(), " files could not be verified"));
}

}  // namespace ckptd::cli
