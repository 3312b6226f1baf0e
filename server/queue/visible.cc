// Saves whose path is to be there when CommitSave answers: a symlink to the staged image, until the
// durable file replaces it by rename (server/persist has that). From its commit to its end:
//
//  1. Where there is something at the path, or its storage does not answer, nothing of this is
//     done. Nor for what came by WriteSave: its client does not see the pool.
//  2. Seal the image: it is a whole checkpoint file, and stays as it is.
//  3. Write to the journal that it is accepted, and where its link leads.
//  4. Put the link. While 2 to 4 go on nothing else happens to the save, though calls do not wait
//     for it.
//  5. It is QUEUED; CommitSave answers.
//  6. Where it does not succeed, remove the link, and only then write down its end: a daemon that
//     dies in between knows of the link, and puts it back with the save.
//
// So a link that is there is known, and leads to what was accepted. One that cannot be removed
// stays in the journal with the ended save, for the next start.
//
// An image that has had a link is not used again: whoever has opened it there may go on to read it,
// for as long as he likes, and no other link will ever lead to its name.

#include <spdlog/spdlog.h>

#include <atomic>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "server/persist/link.h"
#include "server/queue/requests.h"
#include "server/queue/save_queue.h"

namespace ckptd {

bool SaveQueue::WantsLink(const SaveRecord& record) {
  return record.visible == v1::BeginSaveRequest::AT_RETURN && record.save.staged_bytes() == 0 &&
         !record.unprepared;
}

// Accepts a save in which the caller counts as a writer.
absl::Status SaveQueue::AcceptVisible(const SavePtr& record) {
  const absl::StatusOr<bool> sealed = SealForLink(*record);
  {
    absl::MutexLock lock(&mu_);
    absl::Status status = sealed.status();
    if (status.ok()) status = stopping_ ? RefuseWhileEnding("save") : absl::OkStatus();
    if (status.ok() && *sealed) {
      record->link = record->image->path();
      record->sealed = true;
      record->image->set_shown();
    }
    if (status.ok()) status = RecordAccepted(record);
    if (!status.ok()) record->link.clear();
    if (record->link.empty()) {
      --record->writers;
      if (status.ok()) Enqueue(record);
      return status;
    }
  }
  PutLinkWithin(record.get());
  PassFailpoint("commit.linked");
  absl::MutexLock lock(&mu_);
  --record->writers;
  Enqueue(record);
  return absl::OkStatus();
}

// False where the save gets no link.
absl::StatusOr<bool> SaveQueue::SealForLink(const SaveRecord& record) {
  auto is_free = std::make_shared<absl::StatusOr<bool>>(false);
  const bool answered =
      bounded_calls_.Run([is_free, fs = fs_, roots = options_.allow_roots,
                          target = record.target] { *is_free = IsFree(fs, roots, target); },
                         options_.target_patience);
  if (!answered || !is_free->ok() || !**is_free) return false;
  CKPTD_ASSIGN_OR_RETURN(const Backend* backend, backends_->Find(record.save.backend()));
  CKPTD_RETURN_IF_ERROR(
      Annotate(backend->Seal(*record.plan, record.image->data(), [](uint64_t) { return true; }),
               record.save.name()));
  if (record.image->IsUncut()) return true;
  return MakeError(absl::StatusCode::kFailedPrecondition, "IMAGE_CHANGED",
                   absl::StrCat(record.save.name(),
                                ": its client cut the image before it was committed; save again"));
}

// Puts the link of a save that nobody else has. What goes wrong keeps no save: its path is then
// there when it is durable. A call that hangs is told to take its link back, should it get to put
// one.
bool SaveQueue::PutLinkWithin(SaveRecord* record) {
  struct Call {
    std::atomic<bool> late{false};
    absl::StatusOr<bool> put = false;
  };
  auto call = std::make_shared<Call>();
  const bool answered = bounded_calls_.Run(
      [call, fs = fs_, roots = options_.allow_roots, target = record->target,
       image = record->link] {
        call->put = PutLink(fs, roots, target, image);
        if (call->late) LogIfError(RemoveLink(fs, roots, target, image));
      },
      options_.target_patience);
  if (!answered) {
    call->late = true;
    spdlog::warn("{}: the file system of {} does not answer; it is there when it is durable",
                 record->save.name(), record->target.path);
    return false;
  }
  LogIfError(call->put.status());
  if (!call->put.value_or(false)) record->link.clear();
  return true;
}

// Removes the link, if there is one, of a save that is not going to succeed, and that nobody else
// has. Where that fails the record still tells of it.
void SaveQueue::TakeLinkAway(SaveRecord* record) {
  if (record->link.empty()) return;
  auto removed = std::make_shared<absl::Status>();
  const bool answered = bounded_calls_.Run(
      [removed, fs = fs_, roots = options_.allow_roots, target = record->target,
       image = record->link] { *removed = RemoveLink(fs, roots, target, image); },
      options_.target_patience);
  if (answered && removed->ok()) {
    record->link.clear();
    PassFailpoint("end.link-removed");
    return;
  }
  spdlog::warn("{}: {}; the next start tries again", record->save.name(),
               answered ? std::string(removed->message())
                        : absl::StrCat("the file system of ", record->target.path,
                                       " does not answer: cannot remove the link there"));
}

// Before a save that waits is cancelled. Should a worker take it then, it is cancelled all the
// same.
void SaveQueue::HideWaiting(const std::string& name) {
  SavePtr record;
  {
    absl::MutexLock lock(&mu_);
    auto it = by_name_.find(name);
    if (it == by_name_.end()) return;
    record = it->second;
    const bool waits = record->save.state() == v1::Save::QUEUED || work_.Contains(record.get());
    if (!waits || record->paused || record->outcome.has_value() || record->link.empty()) return;
    record->paused = true;
  }
  TakeLinkAway(record.get());
  absl::MutexLock lock(&mu_);
  record->paused = false;
}

// Of saves that an earlier daemon has accepted: it may have died before it put them. Before any of
// them is worked on.
void SaveQueue::RestoreLinks() {
  bool storage_answers = true;
  for (const auto& [op, work] : accepted_) {
    if (op->kind != Operation::Kind::kSave || !storage_answers) continue;
    auto* record = static_cast<SaveRecord*>(op);
    if (!record->link.empty()) storage_answers = PutLinkWithin(record);
  }
}

}  // namespace ckptd
