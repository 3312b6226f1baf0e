#include "proto/status/error_info.h"

#include <optional>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "proto/status/utf8.h"

namespace ckptd {
namespace {

// In the trailers of a call, of which gRPC takes 8 KiB in all.
constexpr size_t kMaxTrailerBytes = 1024;
// In a message's field: a traceback is to be there whole.
constexpr size_t kMaxMessageBytes = 16384;

constexpr absl::string_view kPayloadUrl = "type.googleapis.com/google.rpc.ErrorInfo";

std::string Cut(absl::string_view message, size_t max_bytes) {
  std::string text = ToUtf8(message, max_bytes);
  if (message.size() > max_bytes) text += "...";
  return text;
}

std::optional<google::rpc::ErrorInfo> InfoOf(const absl::Status& status) {
  auto payload = status.GetPayload(kPayloadUrl);
  if (!payload.has_value()) return std::nullopt;
  google::rpc::ErrorInfo info;
  if (!info.ParseFromString(std::string(*payload))) return std::nullopt;
  return info;
}

google::rpc::Status ToRpcWithin(const absl::Status& status, size_t max_bytes) {
  google::rpc::Status rpc;
  rpc.set_code(static_cast<int>(status.code()));
  if (status.ok()) return rpc;
  rpc.set_message(Cut(status.message(), max_bytes));
  google::rpc::ErrorInfo info;
  if (std::optional<google::rpc::ErrorInfo> known = InfoOf(status); known.has_value()) {
    info = std::move(*known);
    for (auto& [key, value] : *info.mutable_metadata()) value = Cut(value, kMaxTrailerBytes);
  } else {
    info.set_reason("INTERNAL");
    info.set_domain(std::string(kErrorDomain));
  }
  rpc.add_details()->PackFrom(info);
  return rpc;
}

}  // namespace

absl::Status MakeError(absl::StatusCode code, absl::string_view reason, absl::string_view message,
                       const ErrorMetadata& metadata) {
  google::rpc::ErrorInfo info;
  info.set_reason(std::string(reason));
  info.set_domain(std::string(kErrorDomain));
  for (const auto& [key, value] : metadata) (*info.mutable_metadata())[key] = ToUtf8(value);
  absl::Status status(code, message);
  status.SetPayload(kPayloadUrl, absl::Cord(info.SerializeAsString()));
  return status;
}

std::string ReasonOf(const absl::Status& status) {
  std::optional<google::rpc::ErrorInfo> info = InfoOf(status);
  return info.has_value() ? info->reason() : "";
}

ErrorMetadata MetadataOf(const absl::Status& status) {
  std::optional<google::rpc::ErrorInfo> info = InfoOf(status);
  if (!info.has_value()) return {};
  return {info->metadata().begin(), info->metadata().end()};
}

absl::Status Annotate(const absl::Status& status, absl::string_view prefix) {
  if (status.ok()) return status;
  absl::Status result(status.code(), absl::StrCat(prefix, ": ", status.message()));
  status.ForEachPayload(
      [&](absl::string_view url, const absl::Cord& payload) { result.SetPayload(url, payload); });
  return result;
}

google::rpc::Status ToRpc(const absl::Status& status) {
  return ToRpcWithin(status, kMaxMessageBytes);
}

absl::Status FromRpc(const google::rpc::Status& rpc) {
  absl::Status status(static_cast<absl::StatusCode>(rpc.code()), rpc.message());
  for (const google::protobuf::Any& detail : rpc.details()) {
    if (detail.Is<google::rpc::ErrorInfo>()) {
      status.SetPayload(kPayloadUrl, absl::Cord(detail.value()));
    }
  }
  return status;
}

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  google::rpc::Status rpc = ToRpcWithin(status, kMaxTrailerBytes);
  return grpc::Status(static_cast<grpc::StatusCode>(rpc.code()), rpc.message(),
                      rpc.SerializeAsString());
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  google::rpc::Status rpc;
  if (!status.error_details().empty() && rpc.ParseFromString(status.error_details())) {
    return FromRpc(rpc);
  }
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

}  // namespace ckptd
