// Names of saves and jobs, and errors on their way over the wire. The first byte says how much of
// the input is a name; all of it is then an error's message, and the rest the details that a daemon
// sent.

#include <google/protobuf/stubs/logging.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "google/rpc/error_details.pb.h"
#include "proto/status/error_info.h"
#include "server/queue/requests.h"
#include "tests/fuzz/fuzz.h"

namespace ckptd {
namespace {

bool IsId(const std::string& id) {
  constexpr absl::string_view kAllowed =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
  return id.find_first_not_of(kAllowed.data()) == std::string::npos && !id.empty() &&
         id.size() < 64;
}

// What the client of a call makes of an error: its reason must have got through.
void CheckWire(const absl::Status& status, const std::string& reason) {
  const grpc::Status wire = ToGrpc(status);
  const absl::Status back = FromGrpc(wire);
  FUZZ_CHECK(back.code() == status.code(), back.ToString());
  FUZZ_CHECK(ReasonOf(back) == reason, absl::StrCat(status.ToString(), " -> ", back.ToString()));
  FUZZ_CHECK(back.message().size() <= 1024 + 3, "a message that long");
}

void CheckName(const std::string& name) {
  const absl::StatusOr<std::string> job = JobOfSave(name);
  const std::vector<std::string> parts = absl::StrSplit(name, '/');
  const bool good = parts.size() == 4 && parts[0] == "jobs" && IsId(parts[1]) &&
                    parts[2] == "saves" && IsId(parts[3]);
  FUZZ_CHECK(job.ok() == good, name);
  FUZZ_CHECK(!good || *job == parts[1], name);
  if (!job.ok()) CheckWire(job.status(), "INVALID_NAME");
  const absl::StatusOr<std::string> parent = JobOfParent(name, false);
  const bool is_parent = parts.size() == 2 && parts[0] == "jobs" && IsId(parts[1]);
  FUZZ_CHECK(parent.ok() == is_parent, name);
  FUZZ_CHECK(!is_parent || *parent == (parts[1] == "-" ? "" : parts[1]), name);
  if (!parent.ok()) CheckWire(parent.status(), "INVALID_NAME");
}

}  // namespace
}  // namespace ckptd

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  google::protobuf::SetLogHandler(nullptr);
  ckptd::FuzzInput input(data, size);
  const std::string all(reinterpret_cast<const char*>(data), size);
  const size_t length = input.Byte();
  ckptd::CheckName(std::string(input.Take(length)));
  // File names, which are any bytes, get into messages and metadata.
  ckptd::CheckWire(
      ckptd::MakeError(absl::StatusCode::kInternal, "STORAGE_ERROR", all, {{"path", all}}),
      "STORAGE_ERROR");
  // Whatever the other side sends is an error still.
  const grpc::Status sent(grpc::StatusCode::NOT_FOUND, "said so", std::string(input.Rest()));
  const absl::Status received = ckptd::FromGrpc(sent);
  ckptd::ReasonOf(received);
  return 0;
}
