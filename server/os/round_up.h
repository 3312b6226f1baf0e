#ifndef CKPTD_SERVER_OS_ROUND_UP_H_
#define CKPTD_SERVER_OS_ROUND_UP_H_

#include <cstdint>

namespace ckptd {

// What memory is mapped in units of, and a direct write is of whole ones.
inline constexpr uint64_t kPageBytes = 4096;

// The least multiple of `unit` that is no less than `size`.
constexpr uint64_t RoundUp(uint64_t size, uint64_t unit = kPageBytes) {
  return (size + unit - 1) / unit * unit;
}

}  // namespace ckptd

#endif  // CKPTD_SERVER_OS_ROUND_UP_H_
