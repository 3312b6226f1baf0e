#ifndef CKPTD_CLIENT_CLI_TEXT_H_
#define CKPTD_CLIENT_CLI_TEXT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "ckptd/v1/checkpoint.pb.h"

namespace ckptd::cli {

// "0 B", "850 KiB", "1.5 GiB".
std::string HumanBytes(int64_t bytes);

// "3s", "5m", "2h", "4d"; "0s" for the future.
std::string HumanDuration(absl::Duration duration);

// A moment on this machine's clock; InfinitePast where it is unset.
absl::Time ToTime(const google::protobuf::Timestamp& time);

// Text from elsewhere as it can be shown on a terminal: control characters as \x1b. Other
// characters stay, in UTF-8.
std::string Printable(absl::string_view text);

// "x/y" for "jobs/x/saves/y": what people type.
std::string ShortSaveName(absl::string_view name);

// "persisting".
std::string StateName(v1::Save::State state);

// How far a save is, from 0 to 1. What counts is the step it is in: staged, or persisted bytes.
double Progress(const v1::Save& save);

// Columns aligned at their widest cell, two spaces between; the last one is not padded.
// `rows` have as many cells as `header`.
std::string Table(const std::vector<std::string>& header,
                  const std::vector<std::vector<std::string>>& rows);

}  // namespace ckptd::cli

#endif  // CKPTD_CLIENT_CLI_TEXT_H_
