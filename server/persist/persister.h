#ifndef CKPTD_SERVER_PERSIST_PERSISTER_H_
#define CKPTD_SERVER_PERSIST_PERSISTER_H_

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/types/optional.h"
#include "server/os/failpoints.h"
#include "server/os/file_id.h"
#include "server/os/file_system.h"
#include "server/persist/allowed_roots.h"
#include "server/persist/target.h"

namespace ckptd {

// A finished checkpoint file in memory, or one that becomes so from front to back.
struct PersistSource {
  // Page-aligned; readable to the end of the last page.
  const uint8_t* data = nullptr;
  uint64_t size = 0;
  // Holds the pages of `data`, or the first of them, for faster direct writes. May be null.
  RegisteredMemory* registered = nullptr;
  // As many bytes at the front are final only when all are.
  uint64_t late_bytes = 0;
  // Makes the bytes final, from front to back, and tells how far it is; the callback returns false
  // when there is no use in going on.
  std::function<absl::Status(const std::function<bool(uint64_t)>&)> seal;
  // Whether no byte of `data` was lost so far, as when another process cuts the file behind it. May
  // be empty: then none can be.
  std::function<bool()> intact;
};

struct PersistControl {
  // Set by anyone to stop before anything is published.
  std::atomic<bool> cancelled{false};
  // Bytes written so far.
  std::atomic<uint64_t> written{0};
  // How far what is written and sealed gives way to other threads of the machine, as nice(1) counts
  // it. Not so its first pieces, and what comes before and after them: that takes the processor for
  // no time, but waits for the storage again and again, and would for the processor each time.
  int niceness = 0;
  // Called now and then after `written` has grown. May be empty.
  std::function<void()> on_progress;
  // Set once the file is durable, where the file system tells: what it was then.
  absl::optional<FileId> file;
};

// IMAGE_CHANGED: a part of the image of `object` was lost while it was the daemon's.
absl::Status ImageChanged(const std::string& object);

// Makes one file durable at its target. See persister.cc for the protocol. Thread-safe.
class Persister {
 public:
  // Nothing is done outside of `roots`. `temp_prefix`: what the names of our own files begin with;
  // see names.h. `failpoints` may be null. `fs` must outlive this.
  Persister(FileSystem* fs, AllowedRoots roots, std::string temp_prefix,
            Failpoints* failpoints = nullptr)
      : fs_(fs),
        roots_(std::move(roots)),
        temp_prefix_(std::move(temp_prefix)),
        failpoints_(failpoints) {}

  // Returns OK once the file is at `target.path`, whole, with mode 0666 & ~`umask` (the process's
  // own umask must be 0; a default ACL of the folder applies), and would survive a power cut. On
  // error the target is as it was, and nothing is left beside it; only an error of the last step,
  // the sync of the folder, comes after the file is visible.
  // FAILED_PRECONDITION (IMAGE_CHANGED) where a part of `source.data` was lost.
  absl::Status Persist(const PersistSource& source, const Target& target, mode_t umask,
                       PersistControl* control) const;

 private:
  FileSystem* const fs_;
  const AllowedRoots roots_;
  const std::string temp_prefix_;
  Failpoints* const failpoints_;
};

// Removes a file, a symlink or a folder with all that is in it, and syncs the folder it was in.
// A missing path is no error. Follows no symlink, whoever puts it there and when, and removes
// nothing outside of `roots`. `failpoints` may be null.
absl::Status RemovePath(FileSystem* fs, const AllowedRoots& roots, const Target& target,
                        Failpoints* failpoints = nullptr);

}  // namespace ckptd

#endif  // CKPTD_SERVER_PERSIST_PERSISTER_H_
