#ifndef CKPTD_TESTS_FUZZ_SEALED_ZIP_H_
#define CKPTD_TESTS_FUZZ_SEALED_ZIP_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace ckptd {

// A record as a zip tells of it, its bytes included.
struct ZipRecord {
  std::string name;
  uint64_t payload_offset = 0;
  absl::string_view payload;
};

// Reads `file`, below 4 GiB, as strictly as it can be: the end records, the directory, each local
// header and each checksum must agree, and no byte may belong to two things or to none. Aborts
// where anything does not hold. Shares no code with what wrote it.
std::vector<ZipRecord> ReadSealedZip(absl::string_view file);

}  // namespace ckptd

#endif  // CKPTD_TESTS_FUZZ_SEALED_ZIP_H_
