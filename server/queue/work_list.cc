#include "server/queue/work_list.h"

#include <algorithm>

namespace ckptd {

void WorkList::Add(std::shared_ptr<Work> work, absl::Duration due) {
  const uint64_t seq = work->seq;
  entries_[seq] = {std::move(work), due};
}

void WorkList::Remove(const Work* work) { entries_.erase(work->seq); }

bool WorkList::Contains(const Work* work) const { return entries_.count(work->seq) != 0; }

WorkList::Entries::const_iterator WorkList::FindRunnable(absl::Duration now) const {
  return std::find_if(entries_.begin(), entries_.end(), [&](const auto& item) {
    const Entry& entry = item.second;
    if (entry.due > now || entry.work->paused) return false;
    auto running = running_.find(entry.work->device);
    return running == running_.end() ||
           running->second < (entry.work->host.empty() ? per_device_ : 1);
  });
}

std::shared_ptr<Work> WorkList::Take(absl::Duration now) {
  auto it = FindRunnable(now);
  if (it == entries_.end()) return nullptr;
  std::shared_ptr<Work> work = it->second.work;
  entries_.erase(it);
  ++running_[work->device];
  return work;
}

void WorkList::Done(const Work* work) {
  auto it = running_.find(work->device);
  if (--it->second == 0) running_.erase(it);
}

bool WorkList::HasRunnable(absl::Duration now) const { return FindRunnable(now) != entries_.end(); }

absl::Duration WorkList::NextDue(absl::Duration now) const {
  absl::Duration next = absl::InfiniteDuration();
  for (const auto& [seq, entry] : entries_) {
    if (entry.due > now) next = std::min(next, entry.due);
  }
  return next;
}

}  // namespace ckptd
