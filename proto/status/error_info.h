#ifndef CKPTD_PROTO_STATUS_ERROR_INFO_H_
#define CKPTD_PROTO_STATUS_ERROR_INFO_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "google/rpc/status.pb.h"
#include "grpcpp/support/status.h"

namespace ckptd {

// The domain of every google.rpc.ErrorInfo of this project.
inline constexpr absl::string_view kErrorDomain = "ckptd";

using ErrorMetadata = std::vector<std::pair<std::string, std::string>>;

// A status that carries a google.rpc.ErrorInfo with domain "ckptd". `reason` is one of those in
// docs/errors.md. `message` starts with the object it is about and ends with the cause.
absl::Status MakeError(absl::StatusCode code, absl::string_view reason, absl::string_view message,
                       const ErrorMetadata& metadata = {});

// The reason of a status made by MakeError, here or on the other side of a call; empty if none.
std::string ReasonOf(const absl::Status& status);

// The metadata of such a status; empty if none. In no order.
ErrorMetadata MetadataOf(const absl::Status& status);

// The same status with "`prefix`: " before its message; keeps reason and metadata.
absl::Status Annotate(const absl::Status& status, absl::string_view prefix);

// To and from the wire. A status without ErrorInfo gets reason INTERNAL on the way out, so that
// every error has one. Messages are cut at 1 KiB in a grpc::Status, as gRPC takes 8 in all, and at
// 16 KiB in a google::rpc::Status; values of metadata at 1 KiB; '?' stands in them for each byte
// that is not UTF-8.
grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);
google::rpc::Status ToRpc(const absl::Status& status);
absl::Status FromRpc(const google::rpc::Status& status);

}  // namespace ckptd

#endif  // CKPTD_PROTO_STATUS_ERROR_INFO_H_
