#ifndef CKPTD_TESTS_FUZZ_ERROR_TABLE_H_
#define CKPTD_TESTS_FUZZ_ERROR_TABLE_H_

#include <map>
#include <string>

#include "absl/status/status.h"
#include "google/protobuf/message_lite.h"

namespace ckptd {

// The table of docs/errors.md, to which every answer of the daemon must keep.
class ErrorTable {
 public:
  // Aborts where `markdown`, a path, has no table.
  explicit ErrorTable(const std::string& markdown);

  // An error must have a reason that stands in the table beside its code, and keep it over the
  // wire.
  void Check(const absl::Status& status) const;

 private:
  // What the column "code" says, by reason.
  std::map<std::string, std::string> codes_;
};

// A message that the daemon sends must be one that its receiver can read.
void CheckReadable(const google::protobuf::MessageLite& message);

}  // namespace ckptd

#endif  // CKPTD_TESTS_FUZZ_ERROR_TABLE_H_
