#ifndef CKPTD_SERVER_PERSIST_NAMES_H_
#define CKPTD_SERVER_PERSIST_NAMES_H_

#include <string>

#include "absl/strings/string_view.h"

namespace ckptd {

// How the names of all files begin that the daemon with this id puts beside a target, as do those
// that it put there before it was restarted.
std::string TempPrefix(absl::string_view daemon_id);

// A prefix below TempPrefix that only the caller has: tells the files of one start of the daemon
// from those that earlier ones have left.
std::string MakeOwnPrefix(absl::string_view daemon_id);

// A new name for such a file: `prefix` and 8 random hexadecimal digits.
std::string MakeTempName(absl::string_view prefix);

// The name that a folder `name` has while it is removed, of the same form. The same each time, so
// that a second attempt finds what the first has left.
std::string RemovalName(const std::string& name);

}  // namespace ckptd

#endif  // CKPTD_SERVER_PERSIST_NAMES_H_
