// What people and watchers see of the queue.

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "server/queue/requests.h"
#include "server/queue/save_queue.h"

namespace ckptd {
namespace {

constexpr int kDefaultPageSize = 50;
constexpr int kMaxPageSize = 1000;

}  // namespace

absl::StatusOr<v1::Save> SaveQueue::GetSave(const std::string& name) const {
  absl::MutexLock lock(&mu_);
  CKPTD_ASSIGN_OR_RETURN(const SavePtr record, FindSave(name));
  return record->save;
}

absl::StatusOr<v1::ListSavesResponse> SaveQueue::ListSaves(
    const v1::ListSavesRequest& request) const {
  CKPTD_ASSIGN_OR_RETURN(const std::string job, JobOfParent(request.parent(), true));
  if (request.page_size() < 0) {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_REQUEST",
                     absl::StrCat("page_size: is ", request.page_size(), ", must be 0 to 1000"));
  }
  const int page_size =
      request.page_size() == 0 ? kDefaultPageSize : std::min(request.page_size(), kMaxPageSize);
  uint64_t before = UINT64_MAX;
  if (!request.page_token().empty() && !absl::SimpleAtoi(request.page_token(), &before)) {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_PAGE_TOKEN",
                     absl::StrCat("page_token '", request.page_token().substr(0, 64),
                                  "': is none that ListSaves gave; leave it out to begin anew"));
  }
  auto wanted = [&](const SaveRecord& record) {
    const auto& states = request.states();
    const bool any_state = states.empty() || std::find(states.begin(), states.end(),
                                                       v1::Save::STATE_UNSPECIFIED) != states.end();
    return (job.empty() || record.job == job) &&
           (request.path().empty() || record.save.path() == request.path() ||
            record.target.path == request.path()) &&
           (any_state ||
            std::find(states.begin(), states.end(), record.save.state()) != states.end());
  };
  v1::ListSavesResponse response;
  absl::MutexLock lock(&mu_);
  // Newest first: the map's order is descending, so this is the first number below `before`.
  for (auto it = by_number_.upper_bound(before); it != by_number_.end(); ++it) {
    if (!wanted(*it->second)) continue;
    if (response.saves_size() == page_size) {
      response.set_next_page_token(absl::StrCat(before));
      break;
    }
    *response.add_saves() = it->second->save;
    before = it->first;
  }
  return response;
}

v1::QueueStatus SaveQueue::GetStatus() const {
  absl::MutexLock lock(&mu_);
  v1::QueueStatus status = counters_;
  int queued = 0;
  int persisting = 0;
  for (const auto& [op, shared] : accepted_) {
    if (op->kind != Operation::Kind::kSave) continue;
    const v1::Save::State state = static_cast<SaveRecord*>(op)->save.state();
    (state == v1::Save::PERSISTING ? persisting : queued) += 1;
  }
  status.set_staging_count(CountStaging());
  status.set_queued_count(queued);
  status.set_persisting_count(persisting);
  return status;
}

int SaveQueue::SessionCount() const {
  absl::MutexLock lock(&mu_);
  return static_cast<int>(sessions_.size());
}

absl::Duration SaveQueue::IdleFor() const {
  absl::MutexLock lock(&mu_);
  if (!sessions_.empty() || !accepted_.empty()) return absl::ZeroDuration();
  return clock_->Uptime() - idle_since_;
}

absl::StatusOr<uint64_t> SaveQueue::Subscribe(const std::string& name, Listener listener) {
  absl::MutexLock lock(&mu_);
  if (name.empty()) {
    for (auto it = by_number_.rbegin(); it != by_number_.rend(); ++it) {
      if (it->second->save.end_time().seconds() == 0) listener(it->second->save, false);
    }
  } else {
    CKPTD_ASSIGN_OR_RETURN(const SavePtr record, FindSave(name));
    listener(record->save, false);
  }
  const uint64_t id = next_subscription_++;
  subscriptions_[id] = {name, std::move(listener)};
  return id;
}

void SaveQueue::Unsubscribe(uint64_t id) {
  absl::MutexLock lock(&mu_);
  subscriptions_.erase(id);
}

}  // namespace ckptd
