// Tables. `saves` has a row for each save that was accepted and for each of the history; `removes`
// one for each removal that is accepted, and for a failed one until somebody was told. A row is
// written before what it says is told to anyone:
//
//   accepted     before CommitSave or RemoveCheckpoint answers
//   ended        before the image goes back to the pool, and before the state is told
//
// So of a daemon that died in between, the next one does again what was done but not written down:
// to make the same image durable at the same path, or to remove what is gone, changes nothing.
//
// SQLite's write-ahead log is written at each commit and synced by a thread of our own soon after:
// the trainer that waits for its CommitSave does not wait for a disk.

#include "server/journal/journal.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "server/os/errors.h"

namespace ckptd {
namespace {

// "ckpt", so that file(1) and we know one of ours.
constexpr int64_t kApplicationId = 0x636b7074;

// Step i makes version i + 1 of version i. A step is never changed once it was released.
constexpr const char* kSteps[] = {
    R"(CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL);
       INSERT INTO meta VALUES ('id', lower(hex(randomblob(8))));
       CREATE TABLE saves (
         name BLOB PRIMARY KEY, number INTEGER NOT NULL, seq INTEGER NOT NULL,
         ended INTEGER NOT NULL,
         save BLOB NOT NULL, fingerprint BLOB NOT NULL, target BLOB NOT NULL,
         device INTEGER NOT NULL, image BLOB NOT NULL) WITHOUT ROWID;
       CREATE TABLE removes (
         seq INTEGER PRIMARY KEY, job BLOB NOT NULL, path BLOB NOT NULL, target BLOB NOT NULL,
         device INTEGER NOT NULL, newest_save BLOB NOT NULL, error BLOB);)",
    R"(ALTER TABLE saves ADD COLUMN crashes INTEGER NOT NULL DEFAULT 0;)",
    R"(ALTER TABLE saves ADD COLUMN link BLOB NOT NULL DEFAULT x'';)",
    R"(CREATE TABLE hosts (id BLOB PRIMARY KEY, spec BLOB NOT NULL) WITHOUT ROWID;
       ALTER TABLE removes ADD COLUMN backend BLOB NOT NULL DEFAULT x'';
       ALTER TABLE removes ADD COLUMN host BLOB NOT NULL DEFAULT x'';)",
};
constexpr int64_t kVersion = std::size(kSteps);

// Pages of the write-ahead log after which they go into the file.
constexpr int kCheckpointPages = 1000;

absl::Status Corrupt(const std::string& file, absl::string_view what) {
  return MakeError(absl::StatusCode::kDataLoss, "JOURNAL_CORRUPT",
                   absl::StrCat("journal ", file, ": ", what));
}

// What tells that two rows cannot both be true: work is known by its place in the one order.
absl::Status CheckOrder(const std::string& file, const Journal::Contents& contents) {
  std::set<uint64_t> numbers;
  std::set<uint64_t> places;
  for (const Journal::SaveEntry& save : contents.saves) {
    if (!numbers.insert(save.number).second) {
      return Corrupt(file, absl::StrCat("two rows of saves have the number ", save.number));
    }
    if (save.seq != 0 && save.end == 0 && !places.insert(save.seq).second) {
      return Corrupt(file, absl::StrCat("two rows have the place ", save.seq, " in the order"));
    }
  }
  for (const Journal::RemoveEntry& remove : contents.removes) {
    if (!places.insert(remove.seq).second) {
      return Corrupt(file, absl::StrCat("two rows have the place ", remove.seq, " in the order"));
    }
  }
  return absl::OkStatus();
}

// A canonical path, or a URL.
bool IsTarget(const std::string& target) {
  return !target.empty() && (target[0] == '/' || target.find("://") != std::string::npos);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Journal>> Journal::Open(FileSystem* fs, const std::string& file) {
  std::unique_ptr<Journal> journal(new Journal(fs, file));
  {
    absl::MutexLock lock(&journal->mu_);
    // SQLite would let others read it; what it makes beside the file has the file's mode.
    FileDescriptor(fs, fs->Open(file, O_CREAT | O_RDWR | O_NOFOLLOW, 0600)).Close();
    CKPTD_ASSIGN_OR_RETURN(journal->database_, SqlDatabase::Open(file));
    // Exclusive: no shared memory beside the file, which network file systems do not have.
    CKPTD_RETURN_IF_ERROR(journal->database_->Execute(
        "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; "
        "PRAGMA wal_autocheckpoint = 0; PRAGMA journal_size_limit = 4194304;"));
    sqlite3_wal_hook(journal->database_->handle(), &Journal::OnCommit, journal.get());
    CKPTD_RETURN_IF_ERROR(journal->Migrate());
    CKPTD_RETURN_IF_ERROR(journal->PrepareAll());
    CKPTD_RETURN_IF_ERROR(journal->ReadId());
  }
  journal->syncer_ = std::thread([j = journal.get()] { j->SyncLoop(); });
  return journal;
}

Journal::~Journal() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  if (syncer_.joinable()) syncer_.join();
}

absl::Status Journal::Migrate() {
  CKPTD_ASSIGN_OR_RETURN(const int64_t version, database_->Number("PRAGMA user_version"));
  CKPTD_ASSIGN_OR_RETURN(const int64_t application, database_->Number("PRAGMA application_id"));
  CKPTD_ASSIGN_OR_RETURN(const int64_t tables,
                         database_->Number("SELECT count(*) FROM sqlite_schema"));
  const bool is_empty = version == 0 && application == 0 && tables == 0;
  if (!is_empty && application != kApplicationId) return Corrupt(file_, "is no journal of ckptd");
  if (version > kVersion) {
    return MakeError(
        absl::StatusCode::kFailedPrecondition, "JOURNAL_TOO_NEW",
        absl::StrCat("journal ", file_, ": is of version ", version, ", this ckptd knows ",
                     kVersion, "; start the ckptd that wrote it, or a later one"));
  }
  if (version < 0) return Corrupt(file_, absl::StrCat("is of version ", version));
  CKPTD_ASSIGN_OR_RETURN(SqlStatement check, database_->Prepare("PRAGMA quick_check(1)"));
  CKPTD_ASSIGN_OR_RETURN(const bool answered, check.Step());
  if (!answered || check.Blob(0) != "ok") {
    return Corrupt(file_, absl::StrCat("is damaged: ", answered ? check.Blob(0) : "no answer"));
  }
  for (int64_t step = version; step < kVersion; ++step) {
    CKPTD_RETURN_IF_ERROR(database_->Execute(
        absl::StrCat("BEGIN; PRAGMA application_id = ", kApplicationId, "; ", kSteps[step],
                     " PRAGMA user_version = ", step + 1, "; COMMIT;")));
    if (!is_empty) spdlog::info("journal {}: migrated to version {}", file_, step + 1);
  }
  return absl::OkStatus();
}

absl::Status Journal::PrepareAll() {
  CKPTD_ASSIGN_OR_RETURN(
      put_save_, database_->Prepare("INSERT OR REPLACE INTO saves (name, number, seq, ended, save, "
                                    "fingerprint, target, device, image, crashes, link) VALUES (?, "
                                    "?, ?, ?, ?, ?, ?, ?, ?, ?, "
                                    "?)"));
  CKPTD_ASSIGN_OR_RETURN(forget_save_, database_->Prepare("DELETE FROM saves WHERE name = ?"));
  CKPTD_ASSIGN_OR_RETURN(
      put_remove_,
      database_->Prepare("INSERT OR REPLACE INTO removes (seq, job, path, target, device, "
                         "newest_save, error, backend, host) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"));
  CKPTD_ASSIGN_OR_RETURN(forget_remove_, database_->Prepare("DELETE FROM removes WHERE seq = ?"));
  CKPTD_ASSIGN_OR_RETURN(
      put_host_, database_->Prepare("INSERT OR REPLACE INTO hosts (id, spec) VALUES (?, ?)"));
  CKPTD_ASSIGN_OR_RETURN(forget_host_, database_->Prepare("DELETE FROM hosts WHERE id = ?"));
  return absl::OkStatus();
}

absl::Status Journal::ReadId() {
  CKPTD_ASSIGN_OR_RETURN(SqlStatement read,
                         database_->Prepare("SELECT value FROM meta WHERE key = 'id'"));
  CKPTD_ASSIGN_OR_RETURN(const bool row, read.Step());
  if (row) id_ = read.Blob(0);
  if (id_.size() != 16) return Corrupt(file_, "has no id");
  CKPTD_ASSIGN_OR_RETURN(const int64_t settled,
                         database_->Number("SELECT count(*) FROM meta WHERE key = 'settled'"));
  is_new_ = settled == 0;
  return absl::OkStatus();
}

absl::Status Journal::Settle() {
  absl::MutexLock lock(&mu_);
  return database_->Execute("INSERT OR IGNORE INTO meta VALUES ('settled', 1)");
}

absl::StatusOr<Journal::Contents> Journal::Read() {
  absl::MutexLock lock(&mu_);
  Contents contents;
  CKPTD_RETURN_IF_ERROR(ReadSaves(&contents.saves));
  CKPTD_RETURN_IF_ERROR(ReadRemoves(&contents.removes));
  CKPTD_RETURN_IF_ERROR(CheckOrder(file_, contents));
  CKPTD_ASSIGN_OR_RETURN(SqlStatement hosts, database_->Prepare("SELECT id, spec FROM hosts"));
  for (;;) {
    CKPTD_ASSIGN_OR_RETURN(const bool row, hosts.Step());
    if (!row) return contents;
    const std::string id = hosts.Blob(0);
    v1::HostSpec& spec = contents.hosts[id];
    if (!spec.ParseFromString(hosts.Blob(1)) || spec.argv().empty()) {
      return Corrupt(file_, absl::StrCat("row ", id, " of hosts is none"));
    }
  }
}

absl::Status Journal::ReadSaves(std::vector<SaveEntry>* entries) {
  CKPTD_ASSIGN_OR_RETURN(
      SqlStatement saves,
      database_->Prepare("SELECT number, seq, ended, save, fingerprint, target, device, image, "
                         "crashes, link FROM saves ORDER BY number"));
  for (;;) {
    CKPTD_ASSIGN_OR_RETURN(const bool row, saves.Step());
    if (!row) return absl::OkStatus();
    SaveEntry& entry = entries->emplace_back();
    entry.number = static_cast<uint64_t>(saves.Int(0));
    entry.seq = static_cast<uint64_t>(saves.Int(1));
    entry.end = static_cast<uint64_t>(saves.Int(2));
    entry.fingerprint = saves.Blob(4);
    entry.target = saves.Blob(5);
    entry.device = static_cast<uint64_t>(saves.Int(6));
    entry.image = saves.Blob(7);
    entry.crashes = static_cast<int>(saves.Int(8));
    entry.link = saves.Blob(9);
    if (!entry.save.ParseFromString(saves.Blob(3)) || entry.save.name().empty() ||
        !IsTarget(entry.target)) {
      return Corrupt(file_, absl::StrCat("row ", entry.number, " of saves is none"));
    }
  }
}

absl::Status Journal::ReadRemoves(std::vector<RemoveEntry>* entries) {
  CKPTD_ASSIGN_OR_RETURN(
      SqlStatement removes,
      database_->Prepare("SELECT seq, job, path, target, device, newest_save, error, backend, host "
                         "FROM removes ORDER BY seq"));
  for (;;) {
    CKPTD_ASSIGN_OR_RETURN(const bool row, removes.Step());
    if (!row) return absl::OkStatus();
    RemoveEntry& entry = entries->emplace_back();
    entry.seq = static_cast<uint64_t>(removes.Int(0));
    entry.job = removes.Blob(1);
    entry.path = removes.Blob(2);
    entry.target = removes.Blob(3);
    entry.device = static_cast<uint64_t>(removes.Int(4));
    entry.newest_save = removes.Blob(5);
    entry.backend = removes.Blob(7);
    entry.host = removes.Blob(8);
    bool sound = IsTarget(entry.target);
    if (!removes.IsNull(6)) {
      sound = entry.error.emplace().ParseFromString(removes.Blob(6)) && sound;
    }
    if (!sound) return Corrupt(file_, absl::StrCat("row ", entry.seq, " of removes is none"));
  }
}

absl::Status Journal::PutSave(const SaveEntry& entry) {
  absl::MutexLock lock(&mu_);
  return Written(put_save_.Bind(1, entry.save.name())
                     .Bind(2, static_cast<int64_t>(entry.number))
                     .Bind(3, static_cast<int64_t>(entry.seq))
                     .Bind(4, static_cast<int64_t>(entry.end))
                     .Bind(5, entry.save.SerializeAsString())
                     .Bind(6, entry.fingerprint)
                     .Bind(7, entry.target)
                     .Bind(8, static_cast<int64_t>(entry.device))
                     .Bind(9, entry.image)
                     .Bind(10, entry.crashes)
                     .Bind(11, entry.link)
                     .Run());
}

absl::Status Journal::ForgetSave(const std::string& name) {
  absl::MutexLock lock(&mu_);
  return Written(forget_save_.Bind(1, name).Run());
}

absl::Status Journal::PutRemove(const RemoveEntry& entry) {
  absl::MutexLock lock(&mu_);
  put_remove_.Bind(1, static_cast<int64_t>(entry.seq))
      .Bind(2, entry.job)
      .Bind(3, entry.path)
      .Bind(4, entry.target)
      .Bind(5, static_cast<int64_t>(entry.device))
      .Bind(6, entry.newest_save);
  put_remove_.Bind(8, entry.backend).Bind(9, entry.host);
  if (entry.error.has_value()) {
    put_remove_.Bind(7, entry.error->SerializeAsString());
  } else {
    put_remove_.BindNull(7);
  }
  return Written(put_remove_.Run());
}

absl::Status Journal::ForgetRemove(uint64_t seq) {
  absl::MutexLock lock(&mu_);
  return Written(forget_remove_.Bind(1, static_cast<int64_t>(seq)).Run());
}

absl::Status Journal::PutHost(const std::string& id, const v1::HostSpec& spec) {
  absl::MutexLock lock(&mu_);
  return Written(put_host_.Bind(1, id).Bind(2, spec.SerializeAsString()).Run());
}

absl::Status Journal::ForgetHost(const std::string& id) {
  absl::MutexLock lock(&mu_);
  return Written(forget_host_.Bind(1, id).Run());
}

// Called by SQLite, inside a call of ours that holds the lock.
int Journal::OnCommit(void* journal, sqlite3* /*database*/, const char* /*name*/,
                      int pages) ABSL_NO_THREAD_SAFETY_ANALYSIS {
  static_cast<Journal*>(journal)->log_pages_ = pages;
  return SQLITE_OK;
}

absl::Status Journal::Written(absl::Status status) {
  if (status.ok()) unsynced_ = true;
  return status;
}

void Journal::SyncLoop() {
  // A descriptor of its own for the log, so that nobody waits for the sync. The file is there from
  // the first write on, and stays the same one for as long as the database is open.
  FileDescriptor log;
  bool stopping = false;
  while (!stopping) {
    {
      absl::MutexLock lock(&mu_);
      auto wanted = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return unsynced_ || stopping_; };
      mu_.Await(absl::Condition(&wanted));
      // Some more may come, for the same sync.
      mu_.AwaitWithTimeout(absl::Condition(&stopping_), kSyncDelay / 2);
      stopping = stopping_;
      unsynced_ = false;
    }
    if (!log) log = FileDescriptor(fs_, fs_->Open(absl::StrCat(file_, "-wal"), O_RDONLY, 0));
    if (log) fs_->DataSync(log.get());
    absl::MutexLock lock(&mu_);
    if (log_pages_ < kCheckpointPages) continue;
    sqlite3_wal_checkpoint_v2(database_->handle(), nullptr, SQLITE_CHECKPOINT_PASSIVE, nullptr,
                              nullptr);
    log_pages_ = 0;
  }
}

absl::Status CountCrashes(const std::vector<uint64_t>& numbers, Journal* journal,
                          Journal::Contents* contents) {
  for (Journal::SaveEntry& entry : contents->saves) {
    const auto count = std::count(numbers.begin(), numbers.end(), entry.number);
    if (count == 0 || entry.end != 0) continue;
    entry.crashes += static_cast<int>(count);
    spdlog::error("{}: a daemon has crashed while it persisted it, {} times now", entry.save.name(),
                  entry.crashes);
    CKPTD_RETURN_IF_ERROR(journal->PutSave(entry));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> SetJournalAside(FileSystem* fs, const std::string& file) {
  std::string aside;
  struct stat info = {};
  int number = 1;
  do {
    aside = absl::StrCat(file, ".corrupt-", number++);
  } while (fs->LinkStat(aside, &info) == 0);
  for (const char* part : {"-wal", ""}) {
    const int error = fs->Rename(absl::StrCat(file, part), absl::StrCat(aside, part));
    if (error < 0 && error != -ENOENT) {
      return OsError(absl::StrCat("journal ", file), "set it aside", -error);
    }
  }
  return aside;
}

}  // namespace ckptd
