#include "server/persist/names.h"

#include <cstdint>
#include <random>

#include "absl/strings/str_cat.h"

namespace ckptd {

std::string MakeTempName() {
  std::random_device random;
  const uint64_t bits = (uint64_t{random()} << 32) | random();
  return absl::StrCat(".ckptd-", absl::Hex(bits, absl::kZeroPad16));
}

}  // namespace ckptd
