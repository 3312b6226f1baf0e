// What people and watchers see of the queue.

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "google/protobuf/wire_format_lite.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "server/queue/requests.h"
#include "server/queue/save_queue.h"

namespace ckptd {
namespace {

constexpr int kDefaultPageSize = 50;
constexpr int kMaxPageSize = 1000;

using google::protobuf::internal::WireFormatLite;
constexpr uint32_t kSavesTag = WireFormatLite::MakeTag(v1::ListSavesResponse::kSavesFieldNumber,
                                                       WireFormatLite::WIRETYPE_LENGTH_DELIMITED);

}  // namespace

absl::StatusOr<v1::Save> SaveQueue::GetSave(const std::string& name) const {
  absl::MutexLock lock(&mu_);
  CKPTD_ASSIGN_OR_RETURN(const SavePtr record, FindSave(name));
  return record->save;
}

absl::StatusOr<std::string> SaveQueue::ListSaves(const v1::ListSavesRequest& request) const {
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
  std::string page;
  v1::ListSavesResponse rest;  // all but the saves
  {
    google::protobuf::io::StringOutputStream stream(&page);
    google::protobuf::io::CodedOutputStream out(&stream);
    int count = 0;
    absl::MutexLock lock(&mu_);
    // Newest first: the map's order is descending, so this is the first number below `before`.
    for (auto it = by_number_.upper_bound(before); it != by_number_.end(); ++it) {
      const v1::Save& save = it->second->save;
      if (!wanted(*it->second)) continue;
      if (count++ == page_size) {
        rest.set_next_page_token(absl::StrCat(before));
        break;
      }
      out.WriteTag(kSavesTag);
      out.WriteVarint32(static_cast<uint32_t>(save.ByteSizeLong()));
      save.SerializeWithCachedSizes(&out);
      before = it->first;
    }
  }
  rest.AppendToString(&page);
  return page;
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
