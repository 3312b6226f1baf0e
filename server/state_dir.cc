#include "server/state_dir.h"

#include <fcntl.h>
#include <isa-l/crc64.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <climits>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "server/os/errors.h"
#include "server/persist/target.h"
#include "server/queue/requests.h"
#include "server/staging/pool_dir.h"

namespace ckptd {
namespace {

// Empty where the environment does not tell.
std::string DefaultStateDir() {
  // NOLINTBEGIN(concurrency-mt-unsafe): nothing changes the environment
  const char* state = std::getenv("XDG_STATE_HOME");
  if (state != nullptr && *state == '/') return absl::StrCat(state, "/ckptd");
  const char* home = std::getenv("HOME");
  // NOLINTEND(concurrency-mt-unsafe)
  if (home != nullptr && *home == '/') return absl::StrCat(home, "/.local/state/ckptd");
  return "";
}

absl::StatusOr<OpenedJournal> OpenAndRead(FileSystem* fs, const std::string& file) {
  OpenedJournal opened;
  CKPTD_ASSIGN_OR_RETURN(opened.journal, Journal::Open(fs, file));
  CKPTD_ASSIGN_OR_RETURN(opened.contents, opened.journal->Read());
  for (const Journal::SaveEntry& entry : opened.contents.saves) {
    if (absl::Status status = JobOfSave(entry.save.name()).status(); !status.ok()) {
      return MakeError(absl::StatusCode::kDataLoss, "JOURNAL_CORRUPT",
                       absl::StrCat("journal ", file, ": row ", entry.number,
                                    " of saves is none: ", status.message()));
    }
  }
  return opened;
}

}  // namespace

absl::StatusOr<std::string> PrepareStateDir(FileSystem* fs, const std::string& state_dir,
                                            const std::string& socket) {
  if (!state_dir.empty()) {
    CKPTD_RETURN_IF_ERROR(PreparePrivateDir(fs, state_dir));
    // SQLite would not say why.
    if (int denied = fs->AccessAt(AT_FDCWD, state_dir, W_OK | X_OK); denied < 0) {
      return OsError(absl::StrCat("state folder ", state_dir), "write the journal there", -denied);
    }
    return state_dir;
  }
  std::string usual = DefaultStateDir();
  std::string fallback = ParentDir(socket);
  absl::Status status = absl::NotFoundError("neither XDG_STATE_HOME nor HOME is set");
  if (!usual.empty()) {
    status = PreparePrivateDir(fs, usual);
    if (status.ok() && fs->AccessAt(AT_FDCWD, usual, W_OK | X_OK) == 0) return usual;
  }
  spdlog::warn(
      "{}; keeping the journal in {}, where it may not survive a restart of the machine: give "
      "--state-dir a folder that does",
      std::string(status.message()), fallback);
  CKPTD_RETURN_IF_ERROR(PreparePrivateDir(fs, fallback));
  return fallback;
}

std::string JournalFile(const std::string& state_dir, const std::string& pool_dir) {
  char host[HOST_NAME_MAX + 1] = {};
  gethostname(host, sizeof(host) - 1);
  const uint64_t pool =
      crc64_ecma_refl(0, reinterpret_cast<const unsigned char*>(pool_dir.data()), pool_dir.size());
  return absl::StrCat(state_dir, "/journal-", host, "-", absl::Hex(pool, absl::kZeroPad16), ".db");
}

absl::StatusOr<OpenedJournal> OpenJournal(FileSystem* fs, const std::string& file) {
  absl::StatusOr<OpenedJournal> opened = OpenAndRead(fs, file);
  if (!absl::IsDataLoss(opened.status())) return opened;
  const absl::Status why = opened.status();
  opened = absl::UnknownError("");  // closes it
  CKPTD_ASSIGN_OR_RETURN(const std::string aside, SetJournalAside(fs, file));
  spdlog::critical(
      "{}. It is set aside as {}, and a new one begun. What was accepted and not durable is kept "
      "in the pool: ckptctl list --state failed shows it, ckptctl export writes it out",
      std::string(why.message()), aside);
  return OpenAndRead(fs, file);
}

}  // namespace ckptd
