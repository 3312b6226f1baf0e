// What an earlier daemon had accepted goes on. Once, before anything is served:
//
//  1. The history comes back as it was.
//  2. The image of each save that had not ended is adopted from the pool's folder, and its plan
//     is made again from the note beside it. One whose image is gone, as after a reboot, is FAILED.
//     Where an image cannot be had for another reason, such as too few descriptors, the daemon does
//     not start, and leaves everything to one that can.
//     One over which daemons have crashed too often is FAILED as well, and its image is kept.
//  3. Saves and removals take their places in the one order again, by the numbers they had. Where a
//     save's path was to be there at once (visible.cc), its link is put if it is not there yet; the
//     links of those that are FAILED now go.
//  4. Whoever has called this removes from the pool's folder what belongs to no save.
//
// Only then does any of it go on. What an earlier daemon left beside a target goes when its save's
// turn comes: that storage may hang now.

#include <spdlog/spdlog.h>

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "server/backend/fingerprint.h"
#include "server/queue/requests.h"
#include "server/queue/save_queue.h"

namespace ckptd {
namespace {

absl::Status Quarantined(const v1::Save& save, int crashes) {
  return MakeError(
      absl::StatusCode::kInternal, "QUARANTINED",
      absl::StrCat(save.name(), ": the daemon has crashed ", crashes,
                   " times while it persisted this save, which is not tried again; its image is "
                   "kept: ckptctl export writes it elsewhere, ckptctl cancel gives it up"));
}

absl::Status Lost(const v1::Save& save, const absl::Status& why) {
  return MakeError(
      absl::StatusCode::kDataLoss, "IMAGE_LOST",
      absl::StrCat(save.name(),
                   ": was accepted, but its staging image is gone, as after a restart of the "
                   "machine, before it was known to be durable; what is at ",
                   save.path(), " is whole, and old or new (", why.message(), ")"));
}

bool IsLost(const absl::Status& status) { return ReasonOf(status) == "IMAGE_LOST"; }

absl::Status CannotStart(const std::string& name, const absl::Status& why) {
  return Annotate(why, absl::StrCat(name,
                                    ": cannot be taken over from an earlier daemon; it and all "
                                    "others are left for the next start, when that is mended"));
}

}  // namespace

absl::Status SaveQueue::Restore(
    const Journal::Contents& contents,
    const std::function<void(const std::set<std::string>& images)>& adopted) {
  absl::MutexLock lock(&mu_);
  RestoreHosts(contents);
  std::vector<std::pair<uint64_t, uint64_t>> ended;
  uint64_t last_seq = 0;
  for (const Journal::SaveEntry& entry : contents.saves) {
    last_seq = std::max(last_seq, entry.seq);
    next_number_ = std::max(next_number_, entry.number + 1);
    next_end_ = std::max(next_end_, entry.end + 1);
  }
  for (const Journal::SaveEntry& entry : contents.saves) {
    CKPTD_RETURN_IF_ERROR(RestoreSave(entry));
  }
  for (const auto& [number, record] : by_number_) {
    RestoreSuperseded(record);
    if (record->end != 0 && !record->save.image_kept()) ended.emplace_back(record->end, number);
  }
  std::sort(ended.begin(), ended.end());
  for (const auto& [end, number] : ended) ended_.push_back(number);

  std::vector<SavePtr> accepted;
  for (const auto& [number, record] : by_number_) {
    if (record->seq != 0) accepted.push_back(record);
  }
  auto by_seq = [](const auto& a, const auto& b) { return a->seq < b->seq; };
  std::sort(accepted.begin(), accepted.end(), by_seq);
  auto save = accepted.begin();
  auto restore_saves_before = [&](uint64_t seq) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    for (; save != accepted.end() && (*save)->seq < seq; ++save) {
      const SavePtr& record = *save;
      Job& job = jobs_[record->job];
      job.newest_save = record;
      if (record->end != 0) continue;
      order_.ContinueAt(record->seq);
      order_.Add(record.get(), {});
      job.active.insert(record);
      AddAccepted(record);
    }
  };
  for (const Journal::RemoveEntry& entry : contents.removes) {
    restore_saves_before(entry.seq);
    RestoreRemove(entry);
    last_seq = std::max(last_seq, entry.seq);
  }
  restore_saves_before(UINT64_MAX);
  RestoreLinks();
  ForgetUnusedHosts(contents);
  order_.ContinueAt(last_seq + 1);
  TrimHistory();
  if (!accepted_.empty()) {
    spdlog::info("took over {} saves and removals of an earlier daemon", accepted_.size());
  }
  // Under the lock, so that no worker has begun, nor given an image back to the pool.
  std::set<std::string> images;
  for (const auto& [name, record] : by_name_) {
    if (record->image != nullptr) images.insert(record->image->name());
  }
  adopted(images);
  return absl::OkStatus();
}

absl::Status SaveQueue::RestoreSave(const Journal::SaveEntry& entry) {
  auto record = std::make_shared<SaveRecord>();
  record->save = entry.save;
  CKPTD_ASSIGN_OR_RETURN(record->job, JobOfSave(entry.save.name()));
  record->fingerprint = entry.fingerprint;
  record->number = entry.number;
  record->seq = entry.seq;
  record->end = entry.end;
  record->target.path = entry.target;
  record->target.dir = ParentDir(entry.target);
  record->target.device = entry.device;
  record->device = entry.device;
  // Its storage did not answer when it was accepted.
  record->unprepared = entry.device == 0;
  record->keys = {entry.target};
  record->crashes = entry.crashes;
  record->link = entry.link;
  record->sealed = entry.end == 0 && !entry.link.empty();
  record->adopted = true;
  by_name_[entry.save.name()] = record;
  by_number_[entry.number] = record;
  record->save.set_image_kept(false);
  if (entry.end != 0) TakeLinkAway(record.get());
  if (entry.end != 0 && entry.image.empty()) return absl::OkStatus();
  const absl::Status adopted = AdoptImage(record, entry.image);
  if (!adopted.ok() && !IsLost(adopted)) return CannotStart(entry.save.name(), adopted);
  if (entry.end != 0) {
    record->save.set_image_kept(adopted.ok());
    return absl::OkStatus();
  }
  if (!adopted.ok()) return FailRestored(record, Lost(record->save, adopted));
  if (record->crashes >= options_.max_crashes) {
    record->save.set_image_kept(true);
    return FailRestored(record, Quarantined(record->save, record->crashes));
  }
  record->save.set_state(v1::Save::QUEUED);
  return absl::OkStatus();
}

// A removal that waits for the save follows it to the one that it gave way to.
void SaveQueue::RestoreSuperseded(const SavePtr& record) {
  if (record->save.state() != v1::Save::SUPERSEDED) return;
  for (const auto& [key, value] : MetadataOf(FromRpc(record->save.error()))) {
    auto newer = by_name_.find(value);
    if (key == "superseded_by" && newer != by_name_.end()) record->superseded_by = newer->second;
  }
}

// Ends a save that cannot go on. It has no place in the order yet.
absl::Status SaveQueue::FailRestored(const SavePtr& record, const absl::Status& why) {
  spdlog::error("{}", std::string(why.message()));
  TakeLinkAway(record.get());
  RemoveLeftoversLater(record.get(), record->target);
  record->save = EndedSave(*record, why);
  return RecordEnd(record, record->save);
}

absl::Status SaveQueue::AdoptImage(const SavePtr& record, const std::string& image) {
  if (!IsImageName(image) || image.find('/') != std::string::npos) {
    return MakeError(absl::StatusCode::kDataLoss, "IMAGE_LOST",
                     absl::StrCat("image '", image.substr(0, 100), "': is none"));
  }
  CKPTD_ASSIGN_OR_RETURN(const std::string note, ReadNote(fs_, pool_->options().dir, image));
  v1::BeginSaveRequest request;
  if (!request.ParseFromString(note)) {
    return MakeError(absl::StatusCode::kDataLoss, "IMAGE_LOST",
                     absl::StrCat("image ", image, ": its note is none"));
  }
  CKPTD_ASSIGN_OR_RETURN(const Backend* backend, backends_->Find(request.backend()));
  CKPTD_ASSIGN_OR_RETURN(record->plan, backend->MakePlan(ToSpec(request)));
  record->umask = request.umask() & 0777;
  record->visible = request.visible();
  if (backend->hosted()) {
    // One that is gone is an error of this save, when its turn comes.
    std::string host = request.host();
    if (host.empty()) {
      CKPTD_ASSIGN_OR_RETURN(host, HostOf(*backend, host));
    }
    SetHosted(record.get(), host, request);
  }
  CKPTD_ASSIGN_OR_RETURN(record->image, pool_->Adopt(image, record->plan->file_bytes()));
  if (request.visible() == v1::BeginSaveRequest::AT_RETURN) record->image->set_shown();
  return absl::OkStatus();
}

void SaveQueue::RestoreRemove(const Journal::RemoveEntry& entry) {
  if (entry.error.has_value()) {
    v1::FailedRemoval failed;
    failed.set_path(entry.path);
    *failed.mutable_error() = *entry.error;
    KeepFailedRemoval(entry.seq, entry.job, std::move(failed));
    return;
  }
  auto record = std::make_shared<RemoveRecord>();
  record->job = entry.job;
  record->path = entry.path;
  record->target.path = entry.target;
  record->target.dir = ParentDir(entry.target);
  record->target.device = entry.device;
  record->device = entry.device;
  record->keys = {entry.target};
  record->backend = entry.backend;
  record->host = entry.host;
  record->adopted = record->host.empty();
  auto newest = by_name_.find(entry.newest_save);
  if (newest != by_name_.end()) record->newest_save = newest->second;
  order_.ContinueAt(entry.seq);
  AddInOrder(record);
  jobs_[record->job].removes.insert(record);
  AddAccepted(record);
}

absl::Status SaveQueue::RestoreOrphans(const std::vector<std::string>& images) {
  absl::MutexLock lock(&mu_);
  for (const std::string& image : images) {
    auto record = std::make_shared<SaveRecord>();
    v1::BeginSaveRequest request;
    const auto note = ReadNote(fs_, pool_->options().dir, image);
    if (!note.ok() && !IsLost(note.status())) return CannotStart(image, note.status());
    const bool known = note.ok() && request.ParseFromString(*note);
    // A start that failed halfway has already written it down.
    auto other = by_name_.find(request.name());
    if (known && other != by_name_.end() && other->second->image != nullptr &&
        other->second->image->name() == image) {
      continue;
    }
    const absl::Status adopted = known ? AdoptImage(record, image) : note.status();
    if (known && !adopted.ok() && !IsLost(adopted)) return CannotStart(request.name(), adopted);
    if (!known || !adopted.ok() || other != by_name_.end()) {
      spdlog::error("image {}: no journal and no note tell what it is; leaving it in {}", image,
                    pool_->options().dir);
      continue;
    }
    record->job = JobOfSave(request.name()).value_or("");
    record->number = next_number_++;
    record->fingerprint = Fingerprint(*note);
    if (record->image->shown()) record->link = record->image->path();
    record->target.path = request.path();
    record->target.dir = ParentDir(request.path());
    record->save.set_name(request.name());
    record->save.set_path(request.path());
    record->save.set_backend(request.backend());
    record->save.set_total_bytes(static_cast<int64_t>(record->plan->file_bytes()));
    record->save.set_tensor_count(CountTensors(request));
    record->save.set_image_kept(true);
    by_name_[request.name()] = record;
    by_number_[record->number] = record;
    CKPTD_RETURN_IF_ERROR(FailRestored(
        record,
        MakeError(absl::StatusCode::kDataLoss, "JOURNAL_LOST",
                  absl::StrCat(request.name(),
                               ": the journal that told whether it was accepted is lost; its "
                               "image is kept, and may be incomplete if its trainer died over it: "
                               "ckptctl export writes it somewhere, ckptctl cancel gives it up"))));
  }
  return absl::OkStatus();
}

}  // namespace ckptd
