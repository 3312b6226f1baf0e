#include "proto/status/address.h"

#include <unistd.h>

#include <cstdlib>

#include "absl/strings/str_cat.h"

namespace ckptd {

// NOLINTBEGIN(concurrency-mt-unsafe): read before any thread could change the environment.
std::string DefaultAddress() {
  if (const char* address = std::getenv("CKPTD_ADDRESS"); address != nullptr && *address != 0) {
    return address;
  }
  if (const char* dir = std::getenv("XDG_RUNTIME_DIR"); dir != nullptr && *dir != 0) {
    return absl::StrCat("unix:", dir, "/ckptd/ckptd.sock");
  }
  return absl::StrCat("unix:/tmp/ckptd-", getuid(), "/ckptd.sock");
}
// NOLINTEND(concurrency-mt-unsafe)

}  // namespace ckptd
