#include "server/queue/copy_turns.h"

#include <algorithm>

#include "absl/time/clock.h"

namespace ckptd {

void CopyTurns::Begin(uint64_t number, uint64_t bytes, absl::Time deadline) {
  if (bytes < kSmallBytes) return;
  constexpr double kBytesPerSecond = 2e9;
  const absl::Duration time = std::min(
      options_.most, options_.least + absl::Seconds(static_cast<double>(bytes) / kBytesPerSecond));
  absl::MutexLock lock(&mu_);
  const absl::Time patience = std::min(deadline, absl::Now() + time);
  waiting_.push_back(number);
  for (absl::Time now = absl::Now(); now < patience; now = absl::Now()) {
    absl::Time next = patience;
    for (auto it = copying_.begin(); it != copying_.end();) {
      if (it->second <= now) {
        it = copying_.erase(it);
      } else {
        next = std::min(next, (it++)->second);
      }
    }
    if (waiting_.front() == number && static_cast<int>(copying_.size()) < options_.at_once) break;
    changed_.WaitWithDeadline(&mu_, next);
  }
  waiting_.erase(std::find(waiting_.begin(), waiting_.end(), number));
  copying_[number] = absl::Now() + time;
  changed_.SignalAll();
}

void CopyTurns::End(uint64_t number) {
  absl::MutexLock lock(&mu_);
  if (copying_.erase(number) != 0) changed_.SignalAll();
}

}  // namespace ckptd
