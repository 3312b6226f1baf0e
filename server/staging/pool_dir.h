#ifndef CKPTD_SERVER_STAGING_POOL_DIR_H_
#define CKPTD_SERVER_STAGING_POOL_DIR_H_

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/os/file_system.h"

namespace ckptd {

// Makes the folder with mode 0700 where it does not exist, and its parents with 0755. Refuses
// (PERMISSION_DENIED) one that is not this user's, or into which others may write.
absl::Status PreparePrivateDir(FileSystem* fs, const std::string& dir);

// PreparePrivateDir, then locks the folder against another daemon for the life of the result.
// FAILED_PRECONDITION where another one has it.
absl::StatusOr<FileDescriptor> PreparePoolDir(FileSystem* fs, const std::string& dir);

// Names of the images in the folder that an earlier daemon had handed out.
absl::StatusOr<std::vector<std::string>> ListImages(FileSystem* fs, const std::string& dir);

// Removes what an earlier daemon left of its own there, but for the images in `keep` and their
// notes.
void RemoveStrays(FileSystem* fs, const std::string& dir, const std::set<std::string>& keep);

// A quarter of the smaller of `memory_limit` and the size of the file system of `dir`, in bytes.
absl::StatusOr<uint64_t> DefaultBudget(FileSystem* fs, const std::string& dir,
                                       uint64_t memory_limit);

}  // namespace ckptd

#endif  // CKPTD_SERVER_STAGING_POOL_DIR_H_
