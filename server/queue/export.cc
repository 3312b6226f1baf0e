// Images that go another way than to the path they were meant for.

#include <spdlog/spdlog.h>

#include "absl/strings/str_cat.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "server/queue/save_queue.h"

namespace ckptd {

// While it is exported a save is paused: no worker begins it, and nothing else ends it.
absl::StatusOr<v1::Save> SaveQueue::ExportSave(const v1::ExportSaveRequest& request) {
  const auto umask = static_cast<mode_t>(request.umask() & 0777);
  SavePtr record;
  {
    absl::MutexLock lock(&mu_);
    CKPTD_ASSIGN_OR_RETURN(record, FindSave(request.name()));
    const v1::Save& save = record->save;
    const bool waits = save.state() == v1::Save::QUEUED || work_.Contains(record.get());
    if (record->paused || record->image == nullptr || (!waits && !save.image_kept())) {
      return MakeError(
          absl::StatusCode::kFailedPrecondition, "SAVE_BUSY",
          absl::StrCat(request.name(), ": cannot be exported: it is ",
                       v1::Save::State_Name(save.state()),
                       record->image == nullptr ? " and its image is given up"
                                                : ", and in the hands of somebody; try again"));
    }
    record->paused = true;
  }
  absl::Status status = Export(*record, request.path(), umask);
  std::unique_ptr<Image> image;
  absl::MutexLock lock(&mu_);
  record->paused = false;
  if (status.ok() && record->save.image_kept()) {
    LogIfError(DropKeptImage(record, &image));
    if (image != nullptr) pool_->Release(std::move(image));
  }
  if (!status.ok()) return status;
  return record->save;
}

absl::Status SaveQueue::Export(SaveRecord& record, const std::string& path, mode_t umask) {
  CKPTD_ASSIGN_OR_RETURN(const Target target,
                         PrepareTarget(fs_, options_.allow_roots, path, umask));
  // An export that a daemon died over is in no journal: whoever wants it asks for it again.
  leftovers_.RemoveFrom(target.dir);
  CKPTD_ASSIGN_OR_RETURN(const PersistSource source, SourceOf(record));
  PersistControl control;
  CKPTD_RETURN_IF_ERROR(persister_.Persist(source, target, umask, &control));
  spdlog::info("{}: exported to {}", record.save.name(), target.path);
  return absl::OkStatus();
}

// Takes the image from a save that has ended; it is the caller's then.
absl::Status SaveQueue::DropKeptImage(const SavePtr& record, std::unique_ptr<Image>* image) {
  Journal::SaveEntry entry = ToEntry(*record);
  entry.image.clear();
  entry.save.set_image_kept(false);
  CKPTD_RETURN_IF_ERROR(journal_->PutSave(entry));
  record->save.set_image_kept(false);
  record->plan.reset();
  *image = std::move(record->image);
  ended_.push_back(record->number);
  Tell(*record, /*progress_only=*/false);
  return absl::OkStatus();
}

}  // namespace ckptd
