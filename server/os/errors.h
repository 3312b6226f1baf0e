#ifndef CKPTD_SERVER_OS_ERRORS_H_
#define CKPTD_SERVER_OS_ERRORS_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace ckptd {

// The status for a system call that answered -`error`: "`object`: cannot `action`: <OS reason>",
// with what to do about it where that is known. Code and reason by docs/errors.md.
absl::Status OsError(absl::string_view object, absl::string_view action, int error);

}  // namespace ckptd

#endif  // CKPTD_SERVER_OS_ERRORS_H_
