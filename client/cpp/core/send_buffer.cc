#include "client/cpp/core/send_buffer.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstring>
#include <filesystem>
#include <string>
#include <system_error>

#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "client/cpp/core/unique_fd.h"

namespace ckptd {
namespace {

// Measured (docs/performance.md). The system doubles it.
constexpr int kBytes = 1 << 20;

// The path of the socket that `fd` is connected to; empty where it is no connection to one.
std::string PeerPath(int fd) {
  sockaddr_un address = {};
  socklen_t length = sizeof(address);
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0 ||
      address.sun_family != AF_UNIX || length <= sizeof(sa_family_t)) {
    return "";
  }
  return {address.sun_path, strnlen(address.sun_path, sizeof(address.sun_path))};
}

void Widen(int fd) {
  int size = 0;
  socklen_t length = sizeof(size);
  if (getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, &length) != 0 || size >= kBytes) return;
  setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &kBytes, sizeof(kBytes));
}

}  // namespace

// gRPC tells nobody its connections' descriptors.
void WidenSendBuffers(absl::string_view peer) {
  if (!absl::ConsumePrefix(&peer, "unix:") || peer.empty()) return;
  std::error_code error;
  std::filesystem::directory_iterator own("/proc/self/fd", error);
  for (; !error && own != std::filesystem::end(own); own.increment(error)) {
    int number = -1;
    if (!absl::SimpleAtoi(own->path().filename().string(), &number)) continue;
    // Ours, so that what is changed is what was looked at, whatever other threads close and open.
    const UniqueFd fd(fcntl(number, F_DUPFD_CLOEXEC, 0));
    if (fd && PeerPath(fd.get()) == peer) Widen(fd.get());
  }
}

}  // namespace ckptd
