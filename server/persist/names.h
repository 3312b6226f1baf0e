#ifndef CKPTD_SERVER_PERSIST_NAMES_H_
#define CKPTD_SERVER_PERSIST_NAMES_H_

#include <string>

#include "absl/strings/string_view.h"

namespace ckptd {

// How the names of all files begin that the daemon with this id puts beside a target.
std::string TempPrefix(absl::string_view daemon_id);

// A new name for such a file: `prefix` and 8 random hexadecimal digits.
std::string MakeTempName(absl::string_view prefix);

}  // namespace ckptd

#endif  // CKPTD_SERVER_PERSIST_NAMES_H_
