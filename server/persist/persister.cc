// The commit protocol.
//
//  1. Open the target's folder, and do all that follows by that descriptor, so that it stays the
//     same folder whatever becomes of its path. Fsync the folders above it: whoever made them,
//     this save or another, a trainer or a person, may not have done it, and a checkpoint that
//     survives a power cut must be found. It costs next to nothing where there is nothing to sync.
//  2. Open an unnamed file (O_TMPFILE) in the target's folder, for direct writing. Where the file
//     system has no unnamed files, one with a dot-name of ours; where it has no direct writing,
//     through the page cache. Either is said in the log. It is made with its final mode: one that
//     was set later need not be durable with the data.
//  3. Allocate its whole length: a full disk is found before a byte is written.
//  4. Write the image in order, in large aligned pieces, as the seal makes them final; those that
//     become so last, at the front, come last. Then check that no part of it was lost meanwhile:
//     what was read there were zeros.
//  5. Cut the file to the exact length (the last piece is a whole page), fdatasync.
//  6. Check the size.
//  7. Publish: link the unnamed file to the target's name. Where that name exists, link it to a
//     dot-name and rename that over the target. So it replaces a link to the image itself, too
//     (link.h): there is a whole checkpoint at each moment.
//  8. fsync the folder. Only then is the checkpoint durable.
//
// Until step 7 the file has no name, so whatever ends the attempt, even the end of the daemon,
// leaves nothing behind (but for the dot-name of a file system without unnamed files).

#include "server/persist/persister.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/optional.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "server/os/crash_marker.h"
#include "server/os/errors.h"
#include "server/os/give_way.h"
#include "server/os/round_up.h"
#include "server/persist/names.h"
#include "server/persist/piece_writer.h"

namespace ckptd {

absl::Status ImageChanged(const std::string& object) {
  return MakeError(absl::StatusCode::kFailedPrecondition, "IMAGE_CHANGED",
                   absl::StrCat(object,
                                ": its client cut the image while it was the daemon's; save again, "
                                "with a client that leaves an image alone once it is committed"));
}

namespace {

constexpr uint64_t kPieceBytes = RegisteredMemory::kPartBytes;
// As many are begun before anything gives way: the storage has something to do from the first.
constexpr uint64_t kPromptBytes = RegisteredMemory::kInFlight * kPieceBytes;

absl::Status Cancelled(const std::string& object) {
  return MakeError(absl::StatusCode::kCancelled, "CANCELLED_BY_REQUEST",
                   absl::StrCat(object, ": the save was cancelled"));
}

// How far the seal is; the writer waits behind it.
class Watermark {
 public:
  void Advance(uint64_t sealed) {
    absl::MutexLock lock(&mu_);
    sealed_ = std::max(sealed_, sealed);
  }
  void Finish(absl::Status status) {
    absl::MutexLock lock(&mu_);
    result_ = std::move(status);
  }
  // Waits until `bytes` are final; the seal's error if it ended before.
  absl::Status WaitFor(uint64_t bytes) {
    absl::MutexLock lock(&mu_);
    auto ready = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
      return sealed_ >= bytes || result_.has_value();
    };
    mu_.Await(absl::Condition(&ready));
    if (sealed_ >= bytes) return absl::OkStatus();
    return result_->ok() ? MakeError(absl::StatusCode::kInternal, "INTERNAL",
                                     "seal: ended before the end of the file")
                         : *result_;
  }

 private:
  absl::Mutex mu_;
  uint64_t sealed_ ABSL_GUARDED_BY(mu_) = 0;
  absl::optional<absl::Status> result_ ABSL_GUARDED_BY(mu_);
};

// What of a thread that gives way does not: its beginning.
class PromptStart {
 public:
  // `niceness` 0: it never gives way.
  explicit PromptStart(int niceness) : niceness_(niceness) {}
  // So many bytes are begun in all, by the calling thread, which gives way once they are enough.
  void Reach(uint64_t begun) {
    if (begun >= kPromptBytes) GiveWay(std::exchange(niceness_, 0));
  }

 private:
  int niceness_;
};

// Runs the seal beside the writer, and stops it when the writer is done with it.
class SealThread {
 public:
  SealThread(const PersistSource& source, int niceness)
      : thread_([this, &source, niceness, work = CrashMarker::CurrentWork()] {
          const CrashMarker::Scope scope(work);
          PromptStart start(niceness);
          watermark_.Finish(source.seal([&](uint64_t sealed) {
            watermark_.Advance(sealed);
            start.Reach(sealed);
            return !stop_.load();
          }));
        }) {}
  ~SealThread() {
    stop_ = true;
    thread_.join();
  }
  Watermark& watermark() { return watermark_; }

 private:
  Watermark watermark_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

// One attempt: owns the file until it is published.
class Attempt {
 public:
  Attempt(FileSystem* fs, const AllowedRoots& roots, const Target& target,
          const std::string& temp_prefix, Failpoints* failpoints)
      : fs_(fs),
        roots_(roots),
        target_(target),
        temp_prefix_(temp_prefix),
        failpoints_(failpoints),
        name_(target.path.substr(target.path.rfind('/') + 1)),
        object_(absl::StrCat("checkpoint ", target.path)) {}
  ~Attempt() {
    if (!temp_name_.empty()) fs_->UnlinkAt(dir_.get(), temp_name_);
  }

  absl::Status OpenDir();
  absl::Status SyncAbove();
  absl::Status Open(mode_t mode);
  absl::Status Allocate(uint64_t size);
  absl::Status CheckIntact(const PersistSource& source) const;
  absl::Status Write(const PersistSource& source, PersistControl* control);
  absl::Status WriteHere(const PersistSource& source, PersistControl* control, int niceness);
  absl::Status Finish(uint64_t size);
  absl::Status Publish();
  absl::Status SyncDir(PersistControl* control);
  const std::string& object() const { return object_; }

 private:
  absl::Status Error(absl::string_view action, int error) const {
    return OsError(object_, action, -error);
  }
  void Pass(absl::string_view failpoint) const {
    if (failpoints_ != nullptr) failpoints_->Pass(failpoint);
  }
  absl::Status WritePieces(const PersistSource& source, Watermark& watermark, uint64_t begin,
                           uint64_t end, PersistControl* control, PieceWriter* writer);

  FileSystem* const fs_;
  const AllowedRoots& roots_;
  const Target& target_;
  const std::string& temp_prefix_;
  Failpoints* const failpoints_;
  const std::string name_;  // in dir_
  const std::string object_;
  FileDescriptor dir_;
  FileDescriptor file_;
  std::string temp_name_;  // in dir_; empty while the file has none
  bool direct_ = true;
  uint64_t begun_ = 0;
  PromptStart start_{0};
};

absl::Status Attempt::OpenDir() {
  dir_ = roots_.OpenBelow(fs_, target_.dir, O_RDONLY | O_DIRECTORY);
  if (dir_) return absl::OkStatus();
  return roots_.Error(object_, absl::StrCat("open its folder ", target_.dir), dir_.get());
}

absl::Status Attempt::SyncAbove() {
  struct stat below = {};
  if (int error = fs_->Stat(dir_.get(), &below); error < 0)
    return Error("look at its folder", error);
  FileDescriptor held;
  for (int dir = dir_.get(); !roots_.IsRoot(below); dir = held.get()) {
    FileDescriptor above(fs_, fs_->OpenAt(dir, "..", O_RDONLY | O_DIRECTORY, 0));
    // Whoever may not read a folder has made nothing in it.
    if (above.get() == -EACCES || above.get() == -EPERM) break;
    struct stat info = {};
    int error = above ? fs_->Stat(above.get(), &info) : above.get();
    // Where the file system ends. The folder above "/" is "/".
    if (error == 0 && (info.st_dev != below.st_dev || info.st_ino == below.st_ino)) break;
    if (error == 0) error = fs_->Sync(above.get());
    if (error < 0) return Error("sync the folders above it", error);
    below = info;
    held = std::move(above);
  }
  return absl::OkStatus();
}

absl::Status Attempt::Open(mode_t mode) {
  const auto try_open = [&](int direct) {
    int fd = fs_->OpenAt(dir_.get(), ".", O_TMPFILE | O_WRONLY | direct, mode);
    if (fd != -EOPNOTSUPP && fd != -EISDIR && fd != -ENOENT) return fd;
    temp_name_ = MakeTempName(temp_prefix_);
    fd = fs_->OpenAt(dir_.get(), temp_name_, O_CREAT | O_EXCL | O_WRONLY | direct, mode);
    if (fd >= 0) return fd;
    // Linux makes the file before it finds that it cannot be written directly.
    if (fd == -EINVAL) fs_->UnlinkAt(dir_.get(), temp_name_);
    temp_name_.clear();
    return fd;
  };
  int fd = try_open(O_DIRECT);
  if (fd == -EINVAL) {
    direct_ = false;
    fd = try_open(0);
  }
  if (fd < 0) return Error("create a file in its folder", fd);
  file_ = FileDescriptor(fs_, fd);
  Pass("persist.opened");
  if (!temp_name_.empty()) {
    spdlog::info("{}: this file system has no unnamed files (O_TMPFILE); writing to {}", object_,
                 temp_name_);
  }
  if (!direct_) {
    spdlog::info("{}: this file system has no O_DIRECT; writing through the page cache", object_);
  }
  return absl::OkStatus();
}

absl::Status Attempt::Allocate(uint64_t size) {
  const int error = fs_->Allocate(file_.get(), static_cast<off_t>(RoundUp(size)));
  if (error == 0 || error == -EOPNOTSUPP || error == -ENOSYS) return absl::OkStatus();
  return Error(absl::StrCat("allocate ", size, " bytes"), error);
}

absl::Status Attempt::Write(const PersistSource& source, PersistControl* control) {
  const int niceness = source.size > kPromptBytes ? control->niceness : 0;
  if (niceness == 0) return WriteHere(source, control, niceness);
  return RunInThread([&] { return WriteHere(source, control, niceness); });
}

absl::Status Attempt::WriteHere(const PersistSource& source, PersistControl* control,
                                int niceness) {
  SealThread seal(source, niceness);
  start_ = PromptStart(niceness);
  control->written = 0;
  PieceWriter writer(fs_, file_.get(), direct_, source, control, object_);
  const uint64_t late = std::min(RoundUp(source.late_bytes, kPieceBytes), source.size);
  CKPTD_RETURN_IF_ERROR(WritePieces(source, seal.watermark(), late, source.size, control, &writer));
  CKPTD_RETURN_IF_ERROR(WritePieces(source, seal.watermark(), 0, late, control, &writer));
  return writer.Finish();
}

absl::Status Attempt::WritePieces(const PersistSource& source, Watermark& watermark, uint64_t begin,
                                  uint64_t end, PersistControl* control, PieceWriter* writer) {
  for (uint64_t offset = begin; offset < end;) {
    const uint64_t length = std::min(kPieceBytes, end - offset);
    const bool is_late = offset < source.late_bytes;
    CKPTD_RETURN_IF_ERROR(
        Annotate(watermark.WaitFor(is_late ? source.size : offset + length), object_));
    if (control->cancelled) return Cancelled(object_);
    CKPTD_RETURN_IF_ERROR(writer->Write(offset, length));
    offset += length;
    start_.Reach(begun_ += length);
  }
  return absl::OkStatus();
}

absl::Status Attempt::CheckIntact(const PersistSource& source) const {
  return source.intact && !source.intact() ? ImageChanged(object_) : absl::OkStatus();
}

absl::Status Attempt::Finish(uint64_t size) {
  Pass("persist.written");
  if (int error = fs_->Truncate(file_.get(), static_cast<off_t>(size)); error < 0) {
    return Error("set its length", error);
  }
  if (int error = fs_->DataSync(file_.get()); error < 0) return Error("sync it", error);
  Pass("persist.synced");
  struct stat info = {};
  if (int error = fs_->Stat(file_.get(), &info); error < 0) return Error("check it", error);
  if (static_cast<uint64_t>(info.st_size) != size) {
    return MakeError(absl::StatusCode::kInternal, "STORAGE_ERROR",
                     absl::StrCat(object_, ": has ", info.st_size, " bytes on storage instead of ",
                                  size, "; the file system lost some"));
  }
  return absl::OkStatus();
}

absl::Status Attempt::Publish() {
  if (temp_name_.empty()) {
    int error = fs_->LinkAt(file_.get(), dir_.get(), name_);
    if (error == 0) {
      Pass("persist.linked");
      return absl::OkStatus();
    }
    if (error != -EEXIST) return Error("publish it", error);
    const std::string temp_name = MakeTempName(temp_prefix_);
    error = fs_->LinkAt(file_.get(), dir_.get(), temp_name);
    if (error < 0) return Error("publish it", error);
    temp_name_ = temp_name;
    Pass("persist.named-beside");
  }
  if (int error = fs_->RenameAt(dir_.get(), temp_name_, name_); error < 0) {
    return Error("publish it", error);
  }
  temp_name_.clear();
  Pass("persist.renamed");
  return absl::OkStatus();
}

absl::Status Attempt::SyncDir(PersistControl* control) {
  if (int error = fs_->Sync(dir_.get()); error < 0) {
    return Error(absl::StrCat("sync its folder ", target_.dir), error);
  }
  if (struct stat info = {}; fs_->Stat(file_.get(), &info) == 0) control->file = FileId::Of(info);
  if (int error = file_.Close(); error < 0) return Error("close it", error);
  Pass("persist.folder-synced");
  return absl::OkStatus();
}

}  // namespace

absl::Status Persister::Persist(const PersistSource& source, const Target& target, mode_t umask,
                                PersistControl* control) const {
  Attempt attempt(fs_, roots_, target, temp_prefix_, failpoints_);
  CKPTD_RETURN_IF_ERROR(attempt.CheckIntact(source));
  CKPTD_RETURN_IF_ERROR(attempt.OpenDir());
  CKPTD_RETURN_IF_ERROR(attempt.SyncAbove());
  CKPTD_RETURN_IF_ERROR(attempt.Open(0666 & ~umask));
  CKPTD_RETURN_IF_ERROR(attempt.Allocate(source.size));
  CKPTD_RETURN_IF_ERROR(attempt.Write(source, control));
  CKPTD_RETURN_IF_ERROR(attempt.CheckIntact(source));
  CKPTD_RETURN_IF_ERROR(attempt.Finish(source.size));
  if (control->cancelled) return Cancelled(attempt.object());
  CKPTD_RETURN_IF_ERROR(attempt.Publish());
  return attempt.SyncDir(control);
}

}  // namespace ckptd
