#ifndef CKPTD_SERVER_PERSIST_LINK_H_
#define CKPTD_SERVER_PERSIST_LINK_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/os/file_system.h"
#include "server/persist/allowed_roots.h"
#include "server/persist/target.h"

// The symlink to a staged image that stands at a path until the durable file replaces it by rename.
// All of it is done by the descriptor of the target's folder, as a Persister does.
namespace ckptd {

// Whether there is nothing at the target, and its folder is there.
absl::StatusOr<bool> IsFree(FileSystem* fs, const AllowedRoots& roots, const Target& target);

// Puts a symlink to `image`, an absolute path, at the target itself: at no moment is there anything
// else beside it. False where the path exists and is not that link; it is left as it is.
absl::StatusOr<bool> PutLink(FileSystem* fs, const AllowedRoots& roots, const Target& target,
                             const std::string& image);

// Removes the target if it is a symlink to `image`, and syncs its folder; OK, too, where it is
// anything else or not there. `image` must be a name that nobody else uses, so that what is removed
// is what PutLink has put there.
absl::Status RemoveLink(FileSystem* fs, const AllowedRoots& roots, const Target& target,
                        const std::string& image);

}  // namespace ckptd

#endif  // CKPTD_SERVER_PERSIST_LINK_H_
