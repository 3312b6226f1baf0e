#ifndef CKPTD_TESTS_SERVER_TESTING_REGISTERING_H_
#define CKPTD_TESTS_SERVER_TESTING_REGISTERING_H_

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

#include "server/os/registered_memory.h"

namespace ckptd {

// Why this machine, or the container that it seems to be, has no registered memory; empty where it
// has, and where it fails for a reason that is no refusal.
inline std::string WhyNoRegisteredMemory() {
  alignas(4096) static std::array<uint8_t, 4096> page;
  std::unique_ptr<RegisteredMemory> memory;
  const int error = NewRegisteredMemory(page.data(), page.size(), &memory);
  if (error != -EPERM && error != -ENOSYS && error != -ENOMEM) return "";
  return std::string("io_uring: ") + std::strerror(-error);
}

}  // namespace ckptd

#endif  // CKPTD_TESTS_SERVER_TESTING_REGISTERING_H_
