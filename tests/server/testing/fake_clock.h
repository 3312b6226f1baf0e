#ifndef CKPTD_TESTS_SERVER_TESTING_FAKE_CLOCK_H_
#define CKPTD_TESTS_SERVER_TESTING_FAKE_CLOCK_H_

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/os/clock.h"

namespace ckptd {

// A clock that stands still until it is told to go on. Thread-safe.
class FakeClock : public Clock {
 public:
  absl::Time Now() const override {
    absl::MutexLock lock(&mu_);
    return now_;
  }
  absl::Duration Uptime() const override {
    absl::MutexLock lock(&mu_);
    return uptime_;
  }
  void Advance(absl::Duration by) {
    absl::MutexLock lock(&mu_);
    now_ += by;
    uptime_ += by;
  }
  // As when somebody sets the clock.
  void Jump(absl::Duration by) {
    absl::MutexLock lock(&mu_);
    now_ += by;
  }

 private:
  mutable absl::Mutex mu_;
  absl::Duration uptime_ ABSL_GUARDED_BY(mu_) = absl::Hours(1);
  absl::Time now_ ABSL_GUARDED_BY(mu_) = absl::FromUnixSeconds(1700000000);
};

}  // namespace ckptd

#endif  // CKPTD_TESTS_SERVER_TESTING_FAKE_CLOCK_H_
