#include "server/backend/call.h"

#include <spdlog/spdlog.h>

#include <cstring>
#include <exception>

#include "absl/strings/str_cat.h"
#include "proto/status/error_info.h"

void ckptd_call::Log(int32_t level, absl::string_view message) {
  const spdlog::level::level_enum levels[] = {spdlog::level::debug, spdlog::level::info,
                                              spdlog::level::warn, spdlog::level::err};
  const size_t index = level < 0 || level > 3 ? 1 : static_cast<size_t>(level);
  spdlog::log(levels[index], "{}", std::string(message));
}

namespace {

absl::Status NotHere(absl::string_view function) {
  return absl::UnimplementedError(
      absl::StrCat("host->", function, ": is not for this call; plugin.h says where it is"));
}

}  // namespace

absl::Status ckptd_call::Allocate(const ckptd_spec& /*spec*/, uint8_t** /*data*/) {
  return NotHere("allocate");
}
absl::Status ckptd_call::PublishFile(const std::string& /*path*/, const ckptd_bytes* /*pieces*/,
                                     size_t /*count*/) {
  return NotHere("publish_file");
}
absl::Status ckptd_call::MakeFolder(const std::string& /*path*/, std::string* /*folder*/) {
  return NotHere("make_folder");
}
absl::Status ckptd_call::WriteFile(const std::string& /*path*/, const ckptd_bytes* /*pieces*/,
                                   size_t /*count*/) {
  return NotHere("write_file");
}
absl::Status ckptd_call::PublishFolder(const std::string& /*folder*/, const std::string& /*path*/) {
  return NotHere("publish_folder");
}
absl::Status ckptd_call::RemovePath(const std::string& /*path*/) { return NotHere("remove_path"); }
absl::Status ckptd_call::Found(const ckptd_tensor& /*tensor*/) { return NotHere("found"); }

namespace ckptd {
namespace {

// No exception may cross, in either direction.
template <typename Function>
ckptd_code Guarded(ckptd_call* call, Function function) {
  absl::Status status;
  try {
    status = function();
  } catch (const std::exception& e) {
    status = absl::ResourceExhaustedError(e.what());
  }
  if (!status.ok()) call->set_error(status.message());
  return static_cast<ckptd_code>(status.code());
}

void Log(ckptd_call* call, int32_t level, const char* message, size_t length) {
  call->Log(level, absl::string_view(message, length));
}
void SetError(ckptd_call* call, const char* message, size_t length) {
  call->set_error(absl::string_view(message, length));
}
int32_t Progress(ckptd_call* call, uint64_t bytes) { return call->Progress(bytes) ? 0 : 1; }
int32_t Cancelled(ckptd_call* call) { return call->Cancelled() ? 1 : 0; }
ckptd_code Allocate(ckptd_call* call, const ckptd_spec* spec, uint8_t** data) {
  return Guarded(call, [&] { return call->Allocate(*spec, data); });
}
ckptd_code PublishFile(ckptd_call* call, const char* path, const ckptd_bytes* pieces,
                       size_t count) {
  return Guarded(call, [&] { return call->PublishFile(path, pieces, count); });
}
ckptd_code MakeFolder(ckptd_call* call, const char* path, char* folder, size_t capacity) {
  return Guarded(call, [&] {
    std::string made;
    if (absl::Status status = call->MakeFolder(path, &made); !status.ok()) return status;
    if (made.size() >= capacity) {
      return absl::OutOfRangeError(absl::StrCat(made, ": is longer than the ", capacity,
                                                " bytes that make_folder was given"));
    }
    std::memcpy(folder, made.c_str(), made.size() + 1);
    return absl::OkStatus();
  });
}
ckptd_code WriteFile(ckptd_call* call, const char* path, const ckptd_bytes* pieces, size_t count) {
  return Guarded(call, [&] { return call->WriteFile(path, pieces, count); });
}
ckptd_code PublishFolder(ckptd_call* call, const char* folder, const char* path) {
  return Guarded(call, [&] { return call->PublishFolder(folder, path); });
}
ckptd_code RemovePath(ckptd_call* call, const char* path) {
  return Guarded(call, [&] { return call->RemovePath(path); });
}
ckptd_code Found(ckptd_call* call, const ckptd_tensor* tensor) {
  return Guarded(call, [&] { return call->Found(*tensor); });
}

constexpr ckptd_host kHost = {sizeof(ckptd_host),
                              CKPTD_PLUGIN_ABI_MAJOR,
                              CKPTD_PLUGIN_ABI_MINOR,
                              Log,
                              SetError,
                              Progress,
                              Cancelled,
                              Allocate,
                              PublishFile,
                              MakeFolder,
                              WriteFile,
                              PublishFolder,
                              RemovePath,
                              Found};

}  // namespace

const ckptd_host* PluginHost() { return &kHost; }

absl::Status CallStatus(ckptd_code code, const ckptd_call& call, absl::string_view reason) {
  if (code == CKPTD_OK) return absl::OkStatus();
  const bool known = code > CKPTD_OK && code <= CKPTD_UNAUTHENTICATED;
  const auto status_code = known ? static_cast<absl::StatusCode>(code) : absl::StatusCode::kUnknown;
  if (status_code == absl::StatusCode::kCancelled) reason = "CANCELLED_BY_REQUEST";
  return MakeError(status_code, reason,
                   call.error().empty()
                       ? absl::StrCat("backend: returned code ", code, " and did not say why")
                       : call.error());
}

}  // namespace ckptd
