#include "client/cli/output.h"

#include <google/protobuf/util/json_util.h>
#include <unistd.h>

#include <cerrno>
#include <string>

namespace ckptd::cli {

void Output::Write(absl::string_view text) {
  while (!text.empty() && !closed_ && status_.ok()) {
    const ssize_t n = write(STDOUT_FILENO, text.data(), text.size());
    if (n > 0) text.remove_prefix(static_cast<size_t>(n));
    if (n >= 0 || errno == EINTR) continue;
    if (errno == EPIPE) {
      closed_ = true;
    } else {
      status_ = absl::ErrnoToStatus(errno, "standard output: cannot write");
    }
  }
}

void Output::WriteJson(const google::protobuf::Message& message, bool line) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = !line;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(message, &json, options);
  if (!status.ok()) {
    status_ = absl::InternalError("the answer cannot be shown as JSON: " + status.ToString());
    return;
  }
  if (json.empty() || json.back() != '\n') json.push_back('\n');
  Write(json);
}

}  // namespace ckptd::cli
