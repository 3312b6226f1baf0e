// What is wished for ahead of need, and the thread that makes it warm.

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/status/error_info.h"
#include "server/os/round_up.h"
#include "server/staging/pool.h"

namespace ckptd {

int Pool::CountReady(uint64_t capacity) const {
  auto near = [&](uint64_t other) { return Near(other, capacity); };
  return static_cast<int>(
      std::count_if(free_.begin(), free_.end(),
                    [&](const auto& image) { return near(image->capacity()); }) +
      std::count_if(warming_.begin(), warming_.end(), near));
}

int Pool::CountAll(uint64_t capacity) const {
  return CountReady(capacity) +
         static_cast<int>(std::count_if(leased_.begin(), leased_.end(),
                                        [&](uint64_t leased) { return Near(leased, capacity); }));
}

int Pool::CountWished(uint64_t capacity) const {
  int count = 0;
  for (const auto& [owner, wish] : wishes_) {
    if (Near(wish.capacity, capacity)) count += wish.count;
  }
  return count;
}

absl::StatusOr<Pool::Reserved> Pool::Reserve(const std::string& owner, uint64_t size, int count,
                                             bool wait, absl::Time deadline,
                                             const CancelToken& cancel) {
  const uint64_t capacity = RoundUp(size);
  if (capacity > options_.budget_bytes) {
    return MakeError(absl::StatusCode::kResourceExhausted, "EXCEEDS_BUDGET",
                     absl::StrCat("reserve: ", size, " bytes are more than the budget of ",
                                  options_.budget_bytes, " bytes of pool ", options_.dir,
                                  "; start ckptd with a larger --staging-budget"));
  }
  absl::MutexLock lock(&mu_);
  ReclaimLocked();
  wishes_[owner] = {capacity, count};
  changed_.SignalAll();
  while (wait && !cancel && !stopping_ && wishes_.count(owner) != 0) {
    const bool idle = warming_.empty() && NextToWarm() == 0 && FindScattered() == free_.end();
    if (idle || changed_.WaitWithDeadline(&mu_, deadline)) break;
  }
  return Reserved{CountReady(capacity), Tell(owner, capacity, count)};
}

std::vector<Pool::FreeImage> Pool::Tell(const std::string& owner, uint64_t capacity, int count) {
  std::list<Image*> near;
  for (const auto& image : free_) {
    if (Near(image->capacity(), capacity)) near.push_back(image.get());
  }
  near.sort([&](const Image* a, const Image* b) {
    return Strangeness(*a, owner) < Strangeness(*b, owner);
  });
  std::vector<FreeImage> told;
  for (Image* image : near) {
    if (count-- == 0) break;
    image->set_session(owner);
    told.push_back({image->path(), image->size(), image->inode(), image->id(), image->cuts()});
  }
  return told;
}

void Pool::Unreserve(const std::string& owner) {
  absl::MutexLock lock(&mu_);
  wishes_.erase(owner);
}

uint64_t Pool::NextToWarm() const {
  for (const auto& [owner, wish] : wishes_) {
    if (CountAll(wish.capacity) < CountWished(wish.capacity) && HasRoom(wish.capacity, true)) {
      return wish.capacity;
    }
  }
  return 0;
}

std::list<std::unique_ptr<Image>>::iterator Pool::FindScattered() {
  auto it = free_.begin();
  while (it != free_.end() && !((*it)->scattered() && CountWished((*it)->capacity()) > 0)) ++it;
  return it;
}

// It is on its way, as one that is being made: a save that wants it waits.
std::unique_ptr<Image> Pool::TakeScattered() {
  const auto it = FindScattered();
  if (it == free_.end()) return nullptr;
  std::unique_ptr<Image> image = std::move(*it);
  free_.erase(it);
  warming_.insert(image->capacity());
  return image;
}

void Pool::WarmLoop() {
  for (;;) {
    uint64_t capacity = 0;
    std::unique_ptr<Image> scattered;
    {
      std::vector<std::unique_ptr<Image>> doomed;
      absl::MutexLock lock(&mu_);
      // While a save waits, one that was taken would come back at once.
      while (!stopping_ && (capacity = NextToWarm()) == 0 &&
             (!waiting_.empty() || (scattered = TakeScattered()) == nullptr)) {
        changed_.Wait(&mu_);
      }
      if (stopping_) return;
      if (scattered == nullptr) {
        if (!MakeRoom(capacity, true, &doomed)) continue;
        used_bytes_ += capacity;
        warming_.insert(capacity);
      }
    }
    if (scattered == nullptr) {
      Warm(capacity);
      continue;
    }
    GatherPages(scattered.get());
    absl::MutexLock lock(&mu_);
    warming_.erase(warming_.find(scattered->capacity()));
    free_.push_front(std::move(scattered));
    changed_.SignalAll();
  }
}

// For a wish; its room is taken.
void Pool::Warm(uint64_t capacity) {
  auto image = Image::Create(fs_, options_.dir, next_id_++, capacity);
  if (image.ok()) {  // with a name, by which its next owner finds it
    GatherPages(image->get());
    if (absl::Status status = (*image)->Park(); !status.ok()) image = status;
  }
  absl::MutexLock lock(&mu_);
  warming_.erase(warming_.find(capacity));
  if (image.ok()) {
    free_.push_front(*std::move(image));
  } else {
    used_bytes_ -= capacity;
    spdlog::warn("reserve: {}", std::string(image.status().message()));
    // Or it would be tried again and again.
    for (auto it = wishes_.begin(); it != wishes_.end();) {
      it = Near(it->second.capacity, capacity) ? wishes_.erase(it) : std::next(it);
    }
  }
  changed_.SignalAll();
}

void Pool::GatherPages(Image* image) {
  image->Unregister();
  // A call for each huge page would cost several times as much.
  constexpr uint64_t kStep = 8 * kHugePage;
  const uint64_t end = image->capacity() / kHugePage * kHugePage;
  // Where memory is in small parts the kernel moves others' pages first, for a long time.
  const absl::Time enough = absl::Now() + absl::Seconds(4e-9 * static_cast<double>(end));
  bool moved = false;
  bool stopped = false;
  for (uint64_t at = 0; at < end && absl::Now() < enough; at += kStep) {
    {
      // Whoever waits for memory is better off with small pages than without.
      absl::MutexLock lock(&mu_);
      stopped = stopping_ || !waiting_.empty();
    }
    if (stopped) break;
    const int error = fs_->Gather(image->fd(), static_cast<off_t>(at), std::min(kStep, end - at));
    if (error == -EINVAL) break;
    moved = true;  // some of them even where it has failed
  }
  // Else the first store to each would be a change of the file, for which it is registered anew.
  bool huge = true;
  if (moved) fs_->Populate(image->data(), image->capacity(), &huge);
  if (!stopped) image->NoteGathered();
}

}  // namespace ckptd
