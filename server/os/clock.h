#ifndef CKPTD_SERVER_OS_CLOCK_H_
#define CKPTD_SERVER_OS_CLOCK_H_

#include <chrono>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace ckptd {

// Where the daemon reads the time from; tests have their own. Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  // The time of day, for people. It may be set, and jump.
  virtual absl::Time Now() const = 0;
  // Time since some moment, for all that is measured or waited for. It never jumps.
  virtual absl::Duration Uptime() const = 0;
};

class SystemClock : public Clock {
 public:
  absl::Time Now() const override { return absl::Now(); }
  absl::Duration Uptime() const override {
    return absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
  }
};

}  // namespace ckptd

#endif  // CKPTD_SERVER_OS_CLOCK_H_
