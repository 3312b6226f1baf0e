#ifndef CKPTD_CLIENT_CPP_CORE_MAPPING_H_
#define CKPTD_CLIENT_CPP_CORE_MAPPING_H_

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <utility>

namespace ckptd {

// Owns the first bytes of a file in memory; null where it has none, or where there are none.
class Mapping {
 public:
  Mapping() = default;
  // `protection` and `flags` are mmap's. Where ok() is false then, errno says why.
  Mapping(int fd, size_t size, int protection, int flags)
      : data_(size == 0 ? nullptr : mmap(nullptr, size, protection, flags, fd, 0)), size_(size) {}
  ~Mapping() {
    if (data_ != nullptr && ok()) munmap(data_, size_);
  }
  Mapping(Mapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  bool ok() const { return data_ != MAP_FAILED; }
  uint8_t* data() const { return static_cast<uint8_t*>(data_); }
  size_t size() const { return size_; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace ckptd

#endif  // CKPTD_CLIENT_CPP_CORE_MAPPING_H_
