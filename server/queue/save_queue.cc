// Sessions, and saves from their memory to their acceptance. How they get that is in begin.cc, and
// what happens to an accepted save in work.cc.

#include "server/queue/save_queue.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cpp/core/stream_copy.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "server/persist/names.h"
#include "server/queue/requests.h"

namespace ckptd {
namespace {

// Calls that may hang in a target's storage at the same time, while those who made them go on.
constexpr int kHangingCalls = 64;

}  // namespace

SaveQueue::SaveQueue(FileSystem* fs, const Clock* clock, Journal* journal, Pool* pool,
                     const BackendRegistry* backends, Options options)
    : fs_(fs),
      clock_(clock),
      journal_(journal),
      pool_(pool),
      backends_(backends),
      options_(std::move(options)),
      temp_prefix_(MakeOwnPrefix(journal->id())),
      leftovers_(fs, options_.allow_roots, TempPrefix(journal->id()), temp_prefix_),
      persister_(fs, options_.allow_roots, temp_prefix_, options_.failpoints),
      bounded_calls_(kHangingCalls),
      copy_turns_(options_.copy_turns),
      work_(options_.workers_per_device),
      idle_since_(clock->Uptime()) {
  absl::MutexLock lock(&mu_);
  StartWorker();
}

SaveQueue::~SaveQueue() { Stop(); }

// ---- Sessions --------------------------------------------------------------------------------

std::string SaveQueue::OpenSession(const std::string& client) {
  std::random_device random;
  auto session = std::make_shared<Session>();
  session->id =
      absl::StrCat(absl::Hex(random(), absl::kZeroPad8), absl::Hex(random(), absl::kZeroPad8));
  session->client = client;
  absl::MutexLock lock(&mu_);
  session->ended = stopping_;
  sessions_[session->id] = session;
  spdlog::info("session {}: opened by {}", session->id, client);
  return session->id;
}

void SaveQueue::CloseSession(const std::string& session_id) {
  std::vector<std::unique_ptr<Image>> images;
  // Let go of elsewhere: to close a file may hang, and whoever calls this serves others, too.
  auto loads = std::make_shared<std::map<std::string, LoadPtr>>();
  SessionPtr session;
  {
    absl::MutexLock lock(&mu_);
    auto it = sessions_.find(session_id);
    if (it == sessions_.end()) return;
    session = it->second;
    sessions_.erase(it);
    session->ended = true;
    const auto staging = session->staging;
    for (const SavePtr& record : staging) {
      spdlog::warn("{}: its client {} is gone before it was complete; reclaiming {} bytes",
                   record->save.name(), session->client, record->save.total_bytes());
      const bool dropped = DropStaging(
          record, MakeError(absl::StatusCode::kCancelled, "CLIENT_DIED",
                            absl::StrCat(record->save.name(), ": its client ", session->client,
                                         " ended before the state was complete")));
      if (dropped && record->image != nullptr) images.push_back(std::move(record->image));
    }
    *loads = session->loads;
    for (const auto& [id, load] : *loads) DropLoad(load);
    for (const std::string& host : session->hosts) LeaveHost(host);
    if (sessions_.empty() && accepted_.empty()) idle_since_ = clock_->Uptime();
    spdlog::info("session {}: closed", session_id);
  }
  // A child that the client forked may still have the memory mapped: it is not used again.
  for (auto& image : images) pool_->Discard(std::move(image));
  pool_->Unreserve(session_id);
  pool_->Wake();
  if (options_.hosts != nullptr) options_.hosts->Wake();
  bounded_calls_.Run([loads] { loads->clear(); }, absl::ZeroDuration());
}

absl::StatusOr<SaveQueue::SessionPtr> SaveQueue::FindSession(const std::string& id) const {
  auto it = sessions_.find(id);
  if (it != sessions_.end()) return it->second;
  return MakeError(absl::StatusCode::kNotFound, "SESSION_NOT_FOUND",
                   absl::StrCat("session '", id.substr(0, 64),
                                "': is not open; open one with OpenSession and keep its stream"));
}

absl::StatusOr<SaveQueue::SavePtr> SaveQueue::FindSave(const std::string& name) const {
  auto it = by_name_.find(name);
  if (it != by_name_.end()) return it->second;
  CKPTD_RETURN_IF_ERROR(JobOfSave(name).status());
  return MakeError(absl::StatusCode::kNotFound, "SAVE_NOT_FOUND",
                   absl::StrCat(name,
                                ": no such save; the daemon may have been restarted, or it "
                                "ended long ago. ckptctl list shows those it knows"),
                   {{"name", name}});
}

absl::Status SaveQueue::RefuseWhileEnding(absl::string_view what) const {
  if (!draining_ && !stopping_) return absl::OkStatus();
  return MakeError(absl::StatusCode::kUnavailable, "DRAINING",
                   absl::StrCat(what,
                                ": the daemon is ending and finishes only what it has "
                                "accepted; try again when it is back"));
}

int SaveQueue::CountStaging() const {
  int count = 0;
  for (const auto& [id, session] : sessions_) count += static_cast<int>(session->staging.size());
  return count;
}

int SaveQueue::CountUnended() const { return CountStaging() + static_cast<int>(accepted_.size()); }

// ---- From STAGING to QUEUED, or not ----------------------------------------------------------

absl::StatusOr<int64_t> SaveQueue::WriteSave(const std::string& name, int64_t offset,
                                             absl::Span<const absl::string_view> pieces) {
  uint64_t length = 0;
  for (absl::string_view piece : pieces) length += piece.size();
  SavePtr record;
  {
    absl::MutexLock lock(&mu_);
    CKPTD_ASSIGN_OR_RETURN(record, FindSave(name));
    if (stopping_) return RefuseWhileEnding("save");
    if (record->save.state() != v1::Save::STAGING || record->image == nullptr) {
      return NotStaging(record->save, "write to");
    }
    const uint64_t size = record->image->size();
    if (offset < 0 || static_cast<uint64_t>(offset) > size ||
        length > size - static_cast<uint64_t>(offset)) {
      return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_OFFSET",
                       absl::StrCat(name, ": ", length, " bytes at offset ", offset,
                                    " lie outside its image of ", size, " bytes"));
    }
    ++record->writers;
  }
  uint8_t* to = record->image->data() + offset;
  for (absl::string_view piece : pieces) {
    ckptd_stream_copy(to, piece.data(), piece.size());
    to += piece.size();
  }
  absl::MutexLock lock(&mu_);
  --record->writers;
  record->save.set_staged_bytes(record->save.staged_bytes() + static_cast<int64_t>(length));
  return record->save.staged_bytes();
}

absl::StatusOr<v1::CommitSaveResponse> SaveQueue::CommitSave(const std::string& name) {
  SavePtr record;
  {
    absl::MutexLock lock(&mu_);
    CKPTD_ASSIGN_OR_RETURN(record, FindSave(name));
    auto no_writers = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return record->writers == 0; };
    mu_.Await(absl::Condition(&no_writers));
    if (record->save.state() != v1::Save::STAGING) {
      if (record->save.commit_time().seconds() == 0) return NotStaging(record->save, "commit");
      return Committed(*record);
    }
    CKPTD_RETURN_IF_ERROR(CheckComplete(*record));
    CKPTD_RETURN_IF_ERROR(stopping_ ? RefuseWhileEnding("save") : absl::OkStatus());
    if (!WantsLink(*record)) {
      CKPTD_RETURN_IF_ERROR(RecordAccepted(record));
      Enqueue(record);
      return Committed(*record);
    }
    ++record->writers;
  }
  CKPTD_RETURN_IF_ERROR(AcceptVisible(record));
  absl::MutexLock lock(&mu_);
  return Committed(*record);
}

absl::Status SaveQueue::CheckComplete(const SaveRecord& record) {
  const auto staged = static_cast<uint64_t>(record.save.staged_bytes());
  if (record.image != nullptr && (staged == 0 || staged == record.payload_bytes)) {
    return absl::OkStatus();
  }
  return MakeError(absl::StatusCode::kFailedPrecondition, "INCOMPLETE_SAVE",
                   absl::StrCat(record.save.name(), ": has received ", staged, " bytes of ",
                                record.payload_bytes, "; write the rest, or abort it"));
}

v1::CommitSaveResponse SaveQueue::Committed(const SaveRecord& record) {
  v1::CommitSaveResponse response;
  *response.mutable_save() = record.save;
  if (const SessionPtr session = record.session.lock(); session != nullptr) {
    for (v1::Save& save : session->ended_saves) *response.add_ended_saves() = std::move(save);
    session->ended_saves.clear();
  }
  return response;
}

// From here on the save is the daemon's, and this daemon's successor's.
absl::Status SaveQueue::RecordAccepted(const SavePtr& record) {
  order_.Add(record.get(), {});
  Journal::SaveEntry entry = ToEntry(*record);
  Stamp(entry.save.mutable_commit_time());
  entry.save.set_state(v1::Save::QUEUED);
  PassFailpoint("commit.before-journal");
  if (absl::Status status = journal_->PutSave(entry); !status.ok()) {
    order_.End(record.get());
    return Annotate(status, record->save.name());
  }
  PassFailpoint("commit.journaled");
  *record->save.mutable_commit_time() = entry.save.commit_time();
  return absl::OkStatus();
}

// Takes a save that RecordAccepted has written down into the work.
void SaveQueue::Enqueue(const SavePtr& record) {
  if (const SessionPtr session = record->session.lock(); session != nullptr) {
    session->staging.erase(record);
  }
  SetState(record.get(), v1::Save::QUEUED);
  Job& job = jobs_[record->job];
  job.active.insert(record);
  job.newest_save = record;
  AddAccepted(record);
}

// Ends a save that is STAGING; its image, if any, is then for the caller to give back. False where
// it was committed or dropped while this waited for calls of WriteSave to leave the image.
bool SaveQueue::DropStaging(const SavePtr& record, const absl::Status& why, v1::Save::State state) {
  auto no_writers = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return record->writers == 0; };
  mu_.Await(absl::Condition(&no_writers));
  if (record->save.state() != v1::Save::STAGING) return false;
  if (const SessionPtr session = record->session.lock(); session != nullptr) {
    session->staging.erase(record);
  }
  record->plan.reset();
  *record->save.mutable_error() = ToRpc(why);
  Stamp(record->save.mutable_end_time());
  record->end = next_end_++;
  ended_.push_back(record->number);
  SetState(record.get(), state);
  // For the history alone: nobody was promised anything.
  Journal::SaveEntry entry = ToEntry(*record);
  entry.image.clear();
  LogIfError(journal_->PutSave(entry));
  TrimHistory();
  return true;
}

absl::StatusOr<v1::Save> SaveQueue::AbortSave(const std::string& name) {
  std::unique_ptr<Image> image;
  v1::Save save;
  {
    absl::MutexLock lock(&mu_);
    CKPTD_ASSIGN_OR_RETURN(const SavePtr record, FindSave(name));
    if (record->save.state() == v1::Save::STAGING) {
      if (DropStaging(record, MakeError(absl::StatusCode::kCancelled, "ABORTED",
                                        absl::StrCat(name, ": its client gave it up")))) {
        image = std::move(record->image);
      }
    }
    save = record->save;
  }
  if (image != nullptr) pool_->Release(std::move(image));
  return save;
}

absl::StatusOr<v1::Save> SaveQueue::CancelSave(const std::string& name) {
  HideWaiting(name);
  std::unique_ptr<Image> image;
  bool staging = false;
  v1::Save save;
  {
    absl::MutexLock lock(&mu_);
    CKPTD_ASSIGN_OR_RETURN(const SavePtr record, FindSave(name));
    const absl::Status why = MakeError(absl::StatusCode::kCancelled, "CANCELLED_BY_REQUEST",
                                       absl::StrCat(name, ": was cancelled by CancelSave"));
    staging = record->save.state() == v1::Save::STAGING && DropStaging(record, why);
    if (staging) {
      image = std::move(record->image);
    } else if (record->paused) {
      return MakeError(absl::StatusCode::kFailedPrecondition, "SAVE_BUSY",
                       absl::StrCat(name, ": is being exported; try again when that is done"));
    } else if (record->outcome.has_value()) {
      // It is durable, or has failed, and only that is still to be written down.
    } else if (record->save.image_kept()) {
      CKPTD_RETURN_IF_ERROR(DropKeptImage(record, &image));
    } else if (record->save.state() == v1::Save::QUEUED || work_.Contains(record.get())) {
      const v1::Save ended = EndedSave(*record, why);
      CKPTD_RETURN_IF_ERROR(RecordEnd(record, ended));
      image = std::move(record->image);
      EndSave(record, ended);
    } else if (record->save.state() == v1::Save::PERSISTING) {
      record->cancel_requested = true;
      record->control.cancelled = true;
      if (options_.hosts != nullptr) options_.hosts->Wake();
    }
    save = record->save;
  }
  if (image == nullptr) return save;
  // The client of a save that was STAGING may still be copying.
  if (staging) {
    pool_->Discard(std::move(image));
  } else {
    pool_->Release(std::move(image));
  }
  return save;
}

}  // namespace ckptd
