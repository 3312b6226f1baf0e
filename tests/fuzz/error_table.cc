#include "tests/fuzz/error_table.h"

#include <fstream>
#include <memory>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "proto/status/error_info.h"
#include "tests/fuzz/fuzz.h"

namespace ckptd {

ErrorTable::ErrorTable(const std::string& markdown) {
  std::ifstream in(markdown);
  for (std::string line; std::getline(in, line);) {
    // | condition | code | `REASON` | what the caller does |
    const std::vector<std::string> columns = absl::StrSplit(line, '|');
    if (columns.size() != 6 || !absl::StartsWith(columns[3], " `")) continue;
    absl::string_view reason = columns[3];
    if (absl::ConsumePrefix(&reason, " `") && absl::ConsumeSuffix(&reason, "` ")) {
      codes_[std::string(reason)] = columns[2];
    }
  }
  FUZZ_CHECK(!codes_.empty(), absl::StrCat(markdown, " has no table of errors"));
}

void ErrorTable::Check(const absl::Status& status) const {
  if (status.ok()) return;
  const std::string reason = ReasonOf(status);
  const auto row = codes_.find(reason);
  FUZZ_CHECK(row != codes_.end(), absl::StrCat("not in docs/errors.md: ", status.ToString()));
  // A backend may answer with a code of its own; that it has no reason of its own is what counts.
  FUZZ_CHECK(reason == "INTERNAL" ||
                 absl::StrContains(row->second, absl::StatusCodeToString(status.code())),
             absl::StrCat("docs/errors.md has another code: ", status.ToString()));
  FUZZ_CHECK(ReasonOf(FromGrpc(ToGrpc(status))) == reason, status.ToString());
}

void CheckReadable(const google::protobuf::MessageLite& message) {
  const std::unique_ptr<google::protobuf::MessageLite> copy(message.New());
  FUZZ_CHECK(copy->ParseFromString(message.SerializeAsString()), message.GetTypeName());
}

}  // namespace ckptd
