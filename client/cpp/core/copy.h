#ifndef CKPTD_CLIENT_CPP_CORE_COPY_H_
#define CKPTD_CLIENT_CPP_CORE_COPY_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ckptd {

// One piece of memory and where it goes. The caller owns both sides, which do not overlap.
struct CopyItem {
  uint8_t* to = nullptr;
  const uint8_t* from = nullptr;
  size_t size_bytes = 0;
};

// Copies everything, with up to `max_threads` threads (the calling one included) where there is
// enough to share out. Returns when all of it is copied.
void CopyAll(const std::vector<CopyItem>& items, int max_threads);

}  // namespace ckptd

#endif  // CKPTD_CLIENT_CPP_CORE_COPY_H_
