#ifndef CKPTD_CLIENT_CLI_OUTPUT_H_
#define CKPTD_CLIENT_CLI_OUTPUT_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/message.h"

namespace ckptd::cli {

// Standard output. After an error the rest is dropped.
class Output {
 public:
  // Writes and flushes.
  void Write(absl::string_view text);

  // Writes a message as JSON: the field names of the .proto file, unset fields too. On one line
  // with `line`.
  void WriteJson(const google::protobuf::Message& message, bool line = false);

  // Whether the reader has gone, as with `ckptctl list | head -1`: no error, but the end.
  bool closed() const { return closed_; }

  // OK unless something could not be written for another reason than that.
  const absl::Status& status() const { return status_; }

 private:
  bool closed_ = false;
  absl::Status status_;
};

}  // namespace ckptd::cli

#endif  // CKPTD_CLIENT_CLI_OUTPUT_H_
