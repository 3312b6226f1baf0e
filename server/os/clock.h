#ifndef CKPTD_SERVER_OS_CLOCK_H_
#define CKPTD_SERVER_OS_CLOCK_H_

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace ckptd {

// Where the daemon reads the time from; tests have their own. Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() const = 0;
};

class SystemClock : public Clock {
 public:
  absl::Time Now() const override { return absl::Now(); }
};

}  // namespace ckptd

#endif  // CKPTD_SERVER_OS_CLOCK_H_
