#ifndef CKPTD_SERVER_JOURNAL_JOURNAL_H_
#define CKPTD_SERVER_JOURNAL_JOURNAL_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "ckptd/v1/checkpoint.pb.h"
#include "server/journal/sqlite.h"
#include "server/os/file_system.h"

namespace ckptd {

// What the daemon has accepted and what became of it, in one SQLite file: what a restarted daemon
// knows of the one before. Thread-safe.
//
// What a method has written when it returns survives the end of this process. A power cut loses at
// most the last kSyncDelay of it; what was accepted in that time is lost with the machine's memory
// in any case.
class Journal {
 public:
  // An accepted save, or one that has ended.
  struct SaveEntry {
    // As people see it: name, state, path, sizes, times, error.
    v1::Save save;
    // Of the request that began it.
    std::string fingerprint;
    // Its place among all saves by BeginSave, in the one order of what was accepted, and among the
    // ended; 0 where it has none.
    uint64_t number = 0;
    uint64_t seq = 0;
    uint64_t end = 0;
    // Canonical path, or a URL, and the device that its folder is on.
    std::string target;
    uint64_t device = 0;
    // Name of its image in the pool; empty where none is kept.
    std::string image;
    // What the symlink at its target leads to, if the daemon may have put one there that may still
    // be; empty otherwise.
    std::string link;
    // How many daemons have crashed over it.
    int crashes = 0;
  };

  // A removal that is accepted, or that failed and of which nobody was told.
  struct RemoveEntry {
    uint64_t seq = 0;
    std::string job;
    std::string path;
    std::string target;
    uint64_t device = 0;
    // Name of the newest save that the job had accepted before; empty where there was none.
    std::string newest_save;
    // The backend that does it, and its host; empty where the daemon removes a file or folder.
    std::string backend;
    std::string host;
    // Set once it has failed.
    std::optional<google::rpc::Status> error;
  };

  struct Contents {
    std::vector<SaveEntry> saves;      // by number
    std::vector<RemoveEntry> removes;  // by seq
    // How the hosts that work may need are started (v1::HostSpec), by id.
    std::map<std::string, v1::HostSpec> hosts;
  };

  static constexpr absl::Duration kSyncDelay = absl::Milliseconds(200);

  // Opens `file`, in a folder that is closed to others, or makes it. One process at a time.
  // DATA_LOSS (JOURNAL_CORRUPT) for a file that is no sound journal, FAILED_PRECONDITION
  // (JOURNAL_TOO_NEW) for one that a later version wrote; one of an earlier version is migrated.
  static absl::StatusOr<std::unique_ptr<Journal>> Open(FileSystem* fs, const std::string& file);
  // Syncs what is not yet.
  ~Journal();
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;

  // JOURNAL_CORRUPT for rows that cannot be, each by itself or together.
  absl::StatusOr<Contents> Read();

  // Writes a save's row, in place of an earlier one of that name.
  absl::Status PutSave(const SaveEntry& entry);
  absl::Status ForgetSave(const std::string& name);
  absl::Status PutRemove(const RemoveEntry& entry);
  absl::Status ForgetRemove(uint64_t seq);
  absl::Status PutHost(const std::string& id, const v1::HostSpec& spec);
  absl::Status ForgetHost(const std::string& id);

  // 16 hexadecimal digits that no other journal has: marks files of this daemon beside targets.
  const std::string& id() const { return id_; }
  // Whether there was none before, or none that was settled: what an earlier daemon accepted is not
  // known then. Settle says that this was seen to.
  bool is_new() const { return is_new_; }
  absl::Status Settle();

 private:
  Journal(FileSystem* fs, std::string file) : fs_(fs), file_(std::move(file)) {}
  absl::Status Migrate() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status PrepareAll() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status ReadId() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status ReadSaves(std::vector<SaveEntry>* entries) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status ReadRemoves(std::vector<RemoveEntry>* entries) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status Written(absl::Status status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SyncLoop();
  static int OnCommit(void* journal, sqlite3* database, const char* name, int pages);

  FileSystem* const fs_;
  const std::string file_;
  // Immutable after Open.
  std::string id_;
  bool is_new_ = false;
  absl::Mutex mu_;
  std::unique_ptr<SqlDatabase> database_ ABSL_GUARDED_BY(mu_);
  SqlStatement put_save_ ABSL_GUARDED_BY(mu_);
  SqlStatement forget_save_ ABSL_GUARDED_BY(mu_);
  SqlStatement put_remove_ ABSL_GUARDED_BY(mu_);
  SqlStatement forget_remove_ ABSL_GUARDED_BY(mu_);
  SqlStatement put_host_ ABSL_GUARDED_BY(mu_);
  SqlStatement forget_host_ ABSL_GUARDED_BY(mu_);
  int log_pages_ ABSL_GUARDED_BY(mu_) = 0;
  bool unsynced_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread syncer_;
};

// Counts a crash against each of the saves with these numbers that had not ended, in the journal
// and in what was read from it.
absl::Status CountCrashes(const std::vector<uint64_t>& numbers, Journal* journal,
                          Journal::Contents* contents);

// Moves a journal that cannot be read, with what SQLite keeps beside it, out of the way: to `file`
// and ".corrupt-" and the first free number from 1. Returns where it is now.
absl::StatusOr<std::string> SetJournalAside(FileSystem* fs, const std::string& file);

}  // namespace ckptd

#endif  // CKPTD_SERVER_JOURNAL_JOURNAL_H_
