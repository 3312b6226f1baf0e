#ifndef CKPTD_CLIENT_CPP_CORE_SAVE_LEDGER_H_
#define CKPTD_CLIENT_CPP_CORE_SAVE_LEDGER_H_

#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "ckptd/v1/checkpoint.pb.h"

namespace ckptd {

// The accepted saves whose end the caller has not been told, so that each failure is told exactly
// once, whichever way it becomes known. Thread-safe.
class SaveLedger {
 public:
  void Accepted(const std::string& name);

  // Takes note if `save` is open here and has ended.
  void Update(const v1::Save& save);

  // Takes note of a save that the daemon does not know any more.
  void Lost(const std::string& name);

  // The caller has been told the end of `name` directly.
  void Told(const std::string& name);

  void AddFailure(absl::Status failure);

  // Accepted saves of which no end is known.
  std::vector<std::string> Open() const;

  // The failures noted since the last call.
  std::vector<absl::Status> TakeFailures();

 private:
  mutable absl::Mutex mu_;
  std::set<std::string> open_ ABSL_GUARDED_BY(mu_);
  std::vector<absl::Status> failures_ ABSL_GUARDED_BY(mu_);
};

}  // namespace ckptd

#endif  // CKPTD_CLIENT_CPP_CORE_SAVE_LEDGER_H_
