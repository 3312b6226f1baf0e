#ifndef CKPTD_SERVER_OS_REGISTERED_MEMORY_H_
#define CKPTD_SERVER_OS_REGISTERED_MEMORY_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>

namespace ckptd {

// Memory whose pages the kernel holds ready for direct writes, so that a write need not look them
// up one by one, which is most of the processor time of a write. Holds the pages that were there
// when it was made, even when the file behind the memory loses them later: then it must go. For one
// thread at a time. The pages are held until it goes, and belong to it for no longer.
class RegisteredMemory {
 public:
  virtual ~RegisteredMemory() = default;
  RegisteredMemory(const RegisteredMemory&) = delete;
  RegisteredMemory& operator=(const RegisteredMemory&) = delete;

  // Writes bytes of the memory, of which `data` is the first, to a file that was opened for direct
  // writing. How many were written; where those are not all of them, or with -errno, any of them
  // may have been.
  virtual ssize_t Write(int fd, const uint8_t* data, size_t length, off_t offset) = 0;

 protected:
  RegisteredMemory() = default;
};

// Registers `length` bytes at `data`, whole pages that stay mapped there, with an io_uring. 0, or
// -errno: -EPERM or -ENOSYS where the kernel or the seccomp profile of a container has no io_uring,
// -ENOMEM where the limit of locked memory (ulimit -l) is too low, -EMFILE
// where half of the descriptors are in use: they are needed for more than this.
int NewRegisteredMemory(uint8_t* data, size_t length, std::unique_ptr<RegisteredMemory>* out);

}  // namespace ckptd

#endif  // CKPTD_SERVER_OS_REGISTERED_MEMORY_H_
