#include "client/cli/text.h"

#include <algorithm>
#include <array>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"

namespace ckptd::cli {
namespace {

// Characters, not bytes: continuation bytes of UTF-8 take no column.
size_t Width(absl::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  }));
}

}  // namespace

std::string HumanBytes(int64_t bytes) {
  constexpr std::array<const char*, 6> kUnits = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 999.5 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  const int digits = unit > 0 && value < 9.95 ? 1 : 0;
  return absl::StrFormat("%.*f %s", digits, value, kUnits[unit]);
}

std::string HumanDuration(absl::Duration duration) {
  duration = std::max(duration, absl::ZeroDuration());
  if (duration < absl::Minutes(2)) return absl::StrCat(absl::ToInt64Seconds(duration), "s");
  if (duration < absl::Hours(2)) return absl::StrCat(absl::ToInt64Minutes(duration), "m");
  if (duration < absl::Hours(48)) return absl::StrCat(absl::ToInt64Hours(duration), "h");
  return absl::StrCat(absl::ToInt64Hours(duration) / 24, "d");
}

absl::Time ToTime(const google::protobuf::Timestamp& time) {
  if (time.seconds() == 0) return absl::InfinitePast();
  return absl::FromUnixSeconds(time.seconds()) + absl::Nanoseconds(time.nanos());
}

std::string Printable(absl::string_view text) {
  std::string out;
  for (char c : text) {
    if (absl::ascii_iscntrl(static_cast<unsigned char>(c))) {
      absl::StrAppendFormat(&out, "\\x%02x", static_cast<unsigned char>(c));
    } else {
      out.push_back(c);
    }
  }
  return out;
}

std::string ShortSaveName(absl::string_view name) {
  const std::vector<absl::string_view> parts = absl::StrSplit(name, '/');
  return parts.size() == 4 ? absl::StrCat(parts[1], "/", parts[3]) : std::string(name);
}

std::string StateName(v1::Save::State state) {
  return absl::AsciiStrToLower(v1::Save::State_Name(state));
}

double Progress(const v1::Save& save) {
  if (save.state() == v1::Save::SUCCEEDED) return 1;
  const int64_t done =
      save.state() == v1::Save::STAGING ? save.staged_bytes() : save.persisted_bytes();
  if (save.total_bytes() <= 0) return 0;
  return std::clamp(static_cast<double>(done) / static_cast<double>(save.total_bytes()), 0.0, 1.0);
}

std::string Table(const std::vector<std::string>& header,
                  const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths(header.size());
  auto measure = [&](const std::vector<std::string>& row) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], Width(row[i]));
  };
  measure(header);
  for (const auto& row : rows) measure(row);
  std::string out;
  auto add = [&](const std::vector<std::string>& row) {
    for (size_t i = 0; i < row.size(); ++i) {
      absl::StrAppend(&out, row[i]);
      if (i + 1 < row.size()) out.append(widths[i] - Width(row[i]) + 2, ' ');
    }
    absl::StripTrailingAsciiWhitespace(&out);
    out.push_back('\n');
  };
  add(header);
  for (const auto& row : rows) add(row);
  return out;
}

}  // namespace ckptd::cli
