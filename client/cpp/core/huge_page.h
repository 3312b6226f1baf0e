#ifndef CKPTD_CLIENT_CPP_CORE_HUGE_PAGE_H_
#define CKPTD_CLIENT_CPP_CORE_HUGE_PAGE_H_

#include <sys/mman.h>
#include <sys/types.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>

namespace ckptd {

inline constexpr size_t kHugePage = size_t{2} << 20;

// Maps a file shared and writable, so that huge pages lie in memory as they do in the file, and are
// mapped by one fault. `offset`: a multiple of kHugePage. MAP_FAILED, and errno says why.
inline void* MapAligned(int fd, off_t offset, size_t length) {
  constexpr int kReserve = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  const size_t room = length + kHugePage;
  void* const reserved = mmap(nullptr, room, PROT_NONE, kReserve, -1, 0);
  if (reserved == MAP_FAILED) return MAP_FAILED;
  const size_t before = kHugePage - reinterpret_cast<uintptr_t>(reserved) % kHugePage;
  auto* const start = static_cast<uint8_t*>(reserved) + before;
  void* const data =
      mmap(start, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, offset);
  const int error = errno;
  if (data == MAP_FAILED) {
    munmap(reserved, room);
  } else {
    const size_t pages = (length + 4095) / 4096 * 4096;
    munmap(reserved, before);
    if (before + pages < room) munmap(start + pages, room - before - pages);
  }
  errno = error;
  return data;
}

}  // namespace ckptd

#endif  // CKPTD_CLIENT_CPP_CORE_HUGE_PAGE_H_
