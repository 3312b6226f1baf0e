// What loads take of the pool.

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "server/os/round_up.h"
#include "server/staging/pool.h"

namespace ckptd {

// Whoever borrows memory may keep it for as long as it trains: there must be enough for its saves.
bool Pool::MayLend(uint64_t capacity) const {
  return used_bytes_ - UsageLocked().free_bytes + 2 * capacity <= options_.budget_bytes;
}

std::unique_ptr<Image> Pool::TakeHolding(const FileId& file) {
  std::unique_ptr<Image> image;
  {
    absl::MutexLock lock(&mu_);
    const auto found = std::find_if(free_.begin(), free_.end(),
                                    [&](const auto& one) { return one->holds() == file; });
    if (found == free_.end() || !MayLend((*found)->capacity())) return nullptr;
    image = std::move(*found);
    free_.erase(found);
    leased_.insert(image->capacity());
  }
  if (image->IsWhole() && image->Lease().ok()) return image;
  Discard(std::move(image));
  return nullptr;
}

std::unique_ptr<Image> Pool::TakeForReading(uint64_t size) {
  {
    absl::MutexLock lock(&mu_);
    ReclaimLocked();
    if (!MayLend(RoundUp(size))) return nullptr;
  }
  const CancelToken never{false};
  auto image = Acquire("", size, absl::Now(), never);
  return image.ok() ? *std::move(image) : nullptr;
}

void Pool::Lend(std::unique_ptr<Image> image) {
  if (absl::Status status = image->Park(); !status.ok()) {
    spdlog::warn("{}; its memory is given back", std::string(status.message()));
    return Discard(std::move(image));
  }
  absl::MutexLock lock(&mu_);
  leased_.erase(leased_.find(image->capacity()));
  lent_.push_back(std::move(image));
}

void Pool::Reclaim() {
  absl::MutexLock lock(&mu_);
  ReclaimLocked();
}

void Pool::ReclaimLocked() {
  for (auto it = lent_.begin(); it != lent_.end();) {
    if ((*it)->IsLent()) {
      ++it;
      continue;
    }
    if ((*it)->IsWhole()) {
      free_.push_back(std::move(*it));
    } else {
      used_bytes_ -= (*it)->capacity();
    }
    it = lent_.erase(it);
    changed_.SignalAll();
  }
}

}  // namespace ckptd
