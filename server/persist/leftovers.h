#ifndef CKPTD_SERVER_PERSIST_LEFTOVERS_H_
#define CKPTD_SERVER_PERSIST_LEFTOVERS_H_

#include <string>

#include "server/os/file_system.h"
#include "server/persist/allowed_roots.h"

namespace ckptd {

// Finds what earlier starts of this daemon, which died over it, have left beside targets.
// Immutable; a copy is as good as the original.
class Leftovers {
 public:
  // `prefix` begins the names of all files that the daemon puts beside targets, `own_prefix` those
  // of this start, which somebody may be writing right now. `fs` must outlive this.
  Leftovers(FileSystem* fs, AllowedRoots roots, std::string prefix, std::string own_prefix);

  // Removes them from the folder `dir`, which may hang with its storage. Whether all are gone, as
  // they are where there is no such folder.
  bool RemoveFrom(const std::string& dir) const;

 private:
  FileSystem* fs_;
  AllowedRoots roots_;
  std::string prefix_;
  std::string own_prefix_;
};

}  // namespace ckptd

#endif  // CKPTD_SERVER_PERSIST_LEFTOVERS_H_
