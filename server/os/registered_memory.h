#ifndef CKPTD_SERVER_OS_REGISTERED_MEMORY_H_
#define CKPTD_SERVER_OS_REGISTERED_MEMORY_H_

#include <sys/types.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace ckptd {

// Memory whose pages the kernel holds ready for direct writes, so that a write need not look them
// up one by one, which is most of the processor time of a write. Holds the pages that were there
// when it was made until it goes, even when the file behind the memory loses them before: then it
// must go, or be cut. For one thread at a time.
class RegisteredMemory {
 public:
  // While one is written the next ones are begun: the device has something to do even where the
  // thread that writes has to wait for a processor.
  static constexpr size_t kInFlight = 4;
  // What crosses a multiple of this may be written up to there.
  static constexpr size_t kPartBytes = size_t{16} << 20;

  explicit RegisteredMemory(size_t size) : held_(size), size_(size) {}
  virtual ~RegisteredMemory() = default;
  RegisteredMemory(const RegisteredMemory&) = delete;
  RegisteredMemory& operator=(const RegisteredMemory&) = delete;

  // As many bytes were registered, and of those as many, from the front on, may be written.
  size_t held() const { return held_; }
  size_t size() const { return size_; }
  // Pages from `size` on are held for nothing, even if the memory grows again.
  void Cut(size_t size) { size_ = std::min(size_, size); }

  // What became of a write that was begun at `offset`: how many bytes were written, or -errno.
  // Where those are not all of them, any may have been.
  struct Ended {
    uint64_t offset = 0;
    ssize_t result = 0;
  };

  // Begins to write `length` bytes at `offset` of the memory, no further than its size, to that
  // place of a file that was opened for direct writing. At most kInFlight may be begun and not
  // ended. -errno if it was not begun; -EIO may mean that an ordinary write would do.
  virtual int Begin(int fd, uint64_t offset, size_t length) = 0;
  // Waits until one of them has ended, in whichever order they do; until then the kernel reads the
  // memory. To be called once for each that was begun.
  virtual Ended End() = 0;

 private:
  const size_t held_;
  size_t size_;
};

// Registers `length` bytes at `data`, whole pages, with an io_uring; they may be mapped elsewhere
// later. 0, or -errno: -EPERM or -ENOSYS where the kernel or the seccomp profile of a container has
// no io_uring, -ENOMEM where the limit of locked memory (ulimit -l) is too low, -EMFILE where half
// of the descriptors are in use: they are needed for more than this.
int NewRegisteredMemory(uint8_t* data, size_t length, std::unique_ptr<RegisteredMemory>* out);

}  // namespace ckptd

#endif  // CKPTD_SERVER_OS_REGISTERED_MEMORY_H_
