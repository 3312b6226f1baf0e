#ifndef CKPTD_SERVER_STATE_DIR_H_
#define CKPTD_SERVER_STATE_DIR_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/journal/journal.h"
#include "server/os/file_system.h"

namespace ckptd {

// Makes the folder of the journal, closed to others, and returns it: `state_dir`, or where that is
// empty $XDG_STATE_HOME/ckptd, or $HOME/.local/state/ckptd, or, where that cannot be had (which the
// log says), the folder of the socket.
absl::StatusOr<std::string> PrepareStateDir(FileSystem* fs, const std::string& state_dir,
                                            const std::string& socket);

// The journal's file in `state_dir`. A journal tells of the images in one pool of one machine, so
// its name is made of both: daemons with pools of their own may share the folder, and machines a
// home.
std::string JournalFile(const std::string& state_dir, const std::string& pool_dir);

struct OpenedJournal {
  std::unique_ptr<Journal> journal;
  Journal::Contents contents;
};

// Opens and reads the journal. One that cannot be read is set aside, and a new one begun; one of a
// later version is an error.
absl::StatusOr<OpenedJournal> OpenJournal(FileSystem* fs, const std::string& file);

}  // namespace ckptd

#endif  // CKPTD_SERVER_STATE_DIR_H_
