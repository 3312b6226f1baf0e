#include "server/os/registered_memory.h"

#include <liburing.h>
#include <sys/resource.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <utility>
#include <vector>

namespace ckptd {
namespace {

constexpr size_t kMostBuffers = 16384;  // io_uring's own limit

class UringMemory : public RegisteredMemory {
 public:
  UringMemory(uint8_t* data, size_t length) : RegisteredMemory(length), data_(data) {}
  ~UringMemory() override {
    // Without this the kernel gives the pages back some time after the ring has gone.
    if (registered_) io_uring_unregister_buffers(&ring_);
    if (has_ring_) io_uring_queue_exit(&ring_);
  }

  int Register();
  int Begin(int fd, uint64_t offset, size_t length) override;
  Ended End() override;

 private:
  uint8_t* const data_;  // where it was when it was registered
  // A write goes to the device in requests of so many parts at most (254 of virtio's). io_uring
  // makes one part of a huge page, in place of 512, only where all of a buffer are huge
  // (Linux 6.12): small buffers, that the end of the memory, or a place for which there was none,
  // spoils only its own.
  size_t buffer_bytes_ = kPartBytes;
  io_uring ring_ = {};
  bool has_ring_ = false;
  bool registered_ = false;
  bool broken_ = false;  // a request that the kernel would not take is in the ring
};

int UringMemory::Register() {
  if (const int error = io_uring_queue_init(kInFlight, &ring_, 0); error < 0) return error;
  has_ring_ = true;
  rlimit limit = {};
  // The kernel gives the lowest number that is free.
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0 &&
      static_cast<rlim_t>(ring_.ring_fd) >= limit.rlim_cur / 2) {
    return -EMFILE;
  }
  std::vector<iovec> buffers;
  while (size() / buffer_bytes_ >= kMostBuffers) buffer_bytes_ *= 2;
  for (size_t begin = 0; begin < size(); begin += buffer_bytes_) {
    buffers.push_back({data_ + begin, std::min(buffer_bytes_, size() - begin)});
  }
  const int error =
      io_uring_register_buffers(&ring_, buffers.data(), static_cast<unsigned>(buffers.size()));
  registered_ = error == 0;
  return error;
}

int UringMemory::Begin(int fd, uint64_t offset, size_t length) {
  if (broken_) return -EIO;
  const size_t buffer = offset / buffer_bytes_;
  const size_t left = std::min<size_t>(size(), (buffer + 1) * buffer_bytes_) - offset;
  io_uring_sqe* const request = io_uring_get_sqe(&ring_);
  if (request == nullptr) return -EIO;
  io_uring_prep_write_fixed(request, fd, data_ + offset,
                            static_cast<unsigned>(std::min(length, left)), offset,
                            static_cast<int>(buffer));
  io_uring_sqe_set_data64(request, offset);
  int submitted = 0;
  do {
    submitted = io_uring_submit(&ring_);
  } while (submitted == -EINTR);
  // Out of memory for it. It would go with the next one, when `fd` may be another file.
  broken_ = submitted != 1;
  return broken_ ? -EIO : 0;
}

RegisteredMemory::Ended UringMemory::End() {
  io_uring_cqe* answer = nullptr;
  // With a ring that is there, and something begun, it fails by signals alone.
  while (io_uring_wait_cqe(&ring_, &answer) < 0) {
  }
  const Ended ended = {io_uring_cqe_get_data64(answer), answer->res};
  io_uring_cqe_seen(&ring_, answer);
  return ended;
}

}  // namespace

int NewRegisteredMemory(uint8_t* data, size_t length, std::unique_ptr<RegisteredMemory>* out) {
  auto memory = std::make_unique<UringMemory>(data, length);
  if (const int error = memory->Register(); error < 0) return error;
  *out = std::move(memory);
  return 0;
}

}  // namespace ckptd
