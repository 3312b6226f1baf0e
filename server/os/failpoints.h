#ifndef CKPTD_SERVER_OS_FAILPOINTS_H_
#define CKPTD_SERVER_OS_FAILPOINTS_H_

#include <atomic>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ckptd {

// The places in the protocols at which tests kill the daemon, in the order in which it passes them.
// docs/crash-matrix.md says what must hold after a death at each.
inline constexpr absl::string_view kFailpoints[] = {
    // A save, until it is accepted.
    "begin.image",
    "begin.noted",
    "commit.before-journal",
    "commit.journaled",
    // With AT_RETURN, and a path that does not exist yet.
    "commit.linked",
    // Persisting it. The second three are for a path that exists already.
    "persist.begin",
    "persist.opened",
    "persist.written",
    "persist.synced",
    "persist.linked",
    "persist.named-beside",
    "persist.renamed",
    "persist.folder-synced",
    // Its end. The first one is for a path that is still a link when the save does not succeed.
    "end.link-removed",
    "end.before-journal",
    "end.journaled",
    "end.released",
    // A removal. A folder is hidden before what is in it goes.
    "remove.before-journal",
    "remove.journaled",
    "remove.begin",
    "remove.hidden",
    "remove.unlinked",
    "remove.removed",
    "remove.end-journaled",
    // A restart.
    "restart.journal-opened",
    "restart.adopted",
    "restart.strays-removed",
    "restart.serving",
};

// Kills the process, as SIGKILL does, at one of those places. By order of a test alone: main makes
// one of $CKPTD_FAILPOINT. Thread-safe.
class Failpoints {
 public:
  // Does nothing.
  Failpoints() = default;

  // `spec`: NAME, or NAME:N for the N-th time that the place is passed. Empty: does nothing.
  // INVALID_ARGUMENT (INVALID_REQUEST) for a name that is none.
  absl::Status Set(absl::string_view spec);

  void Pass(absl::string_view name) {
    if (!name_.empty() && name == name_) Count();
  }

 private:
  void Count();

  // Immutable once there are threads.
  std::string name_;
  std::atomic<int> left_{0};
};

}  // namespace ckptd

#endif  // CKPTD_SERVER_OS_FAILPOINTS_H_
