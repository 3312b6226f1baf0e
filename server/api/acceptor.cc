#include "server/api/acceptor.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "server/os/errors.h"
#include "server/staging/pool_dir.h"

namespace ckptd {
namespace {

constexpr int kBacklog = 1024;
// In epoll's data: which of a peer's two descriptors an event is about. The rest is the key.
constexpr uint64_t kProcessBit = uint64_t{1} << 32;

}  // namespace

absl::StatusOr<std::unique_ptr<Acceptor>> Acceptor::Bind(FileSystem* fs, const std::string& path) {
  if (path.empty() || path[0] != '/') {
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_PATH",
                     absl::StrCat("socket '", path, "': is not an absolute path"));
  }
  if (path.size() >= sizeof(sockaddr_un::sun_path)) {
    return MakeError(
        absl::StatusCode::kInvalidArgument, "INVALID_PATH",
        absl::StrCat("socket ", path, ": is longer than the ", sizeof(sockaddr_un::sun_path) - 1,
                     " bytes that the system takes; choose a shorter --socket"));
  }
  std::unique_ptr<Acceptor> acceptor(new Acceptor(fs, path));
  const std::string dir = path.substr(0, path.rfind('/'));
  CKPTD_RETURN_IF_ERROR(PreparePrivateDir(fs, dir));
  CKPTD_RETURN_IF_ERROR(acceptor->TakeLock());
  CKPTD_RETURN_IF_ERROR(acceptor->Listen());
  return acceptor;
}

// Before bind: a second server would replace the socket of the first without a word.
absl::Status Acceptor::TakeLock() {
  const std::string name = absl::StrCat(path_, ".lock");
  lock_ = FileDescriptor(fs_, fs_->Open(name, O_CREAT | O_RDWR | O_NOFOLLOW, 0600));
  if (!lock_) return OsError(absl::StrCat("lock ", name), "open it", -lock_.get());
  if (flock(lock_.get(), LOCK_EX | LOCK_NB) == 0) return absl::OkStatus();
  return MakeError(absl::StatusCode::kFailedPrecondition, "ALREADY_RUNNING",
                   absl::StrCat("socket ", path_,
                                ": another ckptd is serving it; use that one (ckptctl status), "
                                "stop it, or give this one its own --socket and --pool-dir"));
}

absl::Status Acceptor::Listen() {
  const std::string object = absl::StrCat("socket ", path_);
  listener_ = FileDescriptor(fs_, socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener_) return OsError(object, "create it", errno);
  if (int error = fs_->Unlink(path_); error < 0 && error != -ENOENT) {
    return OsError(object, "remove the old one", -error);
  }
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path_.c_str(), path_.size());
  // The only way to have the socket closed to others from its first moment on.
  const mode_t old_umask = umask(0177);
  const int bound =
      bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address));
  const int error = errno;
  umask(old_umask);
  if (bound != 0) return OsError(object, "bind it", error);
  if (listen(listener_.get(), kBacklog) != 0) return OsError(object, "listen on it", errno);

  epoll_ = FileDescriptor(fs_, epoll_create1(EPOLL_CLOEXEC));
  stop_event_ = FileDescriptor(fs_, eventfd(0, EFD_CLOEXEC));
  if (!epoll_ || !stop_event_) return OsError(object, "wait for connections", errno);
  for (const FileDescriptor* fd : {&listener_, &stop_event_}) {
    epoll_event event = {};
    event.events = EPOLLIN;
    event.data.u64 = static_cast<uint64_t>(fd->get());
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd->get(), &event) != 0) {
      return OsError(object, "wait for connections", errno);
    }
  }
  return absl::OkStatus();
}

Acceptor::~Acceptor() {
  Stop();
  if (listener_) fs_->Unlink(path_);
}

void Acceptor::Start(Handlers handlers) {
  handlers_ = std::move(handlers);
  thread_ = std::thread([this] { Loop(); });
}

void Acceptor::Stop() {
  if (!thread_.joinable()) return;
  eventfd_write(stop_event_.get(), 1);
  thread_.join();
  peers_.clear();
}

void Acceptor::Loop() {
  for (;;) {
    epoll_event events[64];
    const int count = epoll_wait(epoll_.get(), events, 64, -1);
    for (int i = 0; i < count; ++i) {
      const int key = static_cast<int>(events[i].data.u64 & (kProcessBit - 1));
      if (key == stop_event_.get()) return;
      if (key == listener_.get()) {
        AcceptOne();
      } else {
        // Either the process has ended, and its connection with it, or gRPC closed the connection.
        if ((events[i].data.u64 & kProcessBit) != 0) shutdown(key, SHUT_RDWR);
        DropPeer(key);
      }
    }
  }
}

void Acceptor::AcceptOne() {
  const int fd = accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (fd < 0) {
    if (errno != EAGAIN && errno != ECONNABORTED && errno != EINTR) {
      spdlog::error(
          "{}",
          std::string(
              OsError(absl::StrCat("socket ", path_), "accept a connection", errno).message()));
    }
    return;
  }
  ucred peer = {};
  socklen_t length = sizeof(peer);
  const bool known = getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0;
  if (!known || peer.uid != geteuid()) {
    spdlog::warn("socket {}: refused a connection of uid {} (pid {}); this daemon serves uid {}",
                 path_, peer.uid, peer.pid, geteuid());
    handlers_.refuse(fd);
    return;
  }
  Follow(fd, peer.pid);
  handlers_.accept(fd);
}

// The pid is 0 where the peer lives in a PID namespace that we do not see: then the connection
// alone tells.
void Acceptor::Follow(int fd, pid_t pid) {
  if (pid <= 0) return;
  Peer peer;
  peer.process = FileDescriptor(fs_, static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  peer.socket = FileDescriptor(fs_, fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!peer.process || !peer.socket) return;
  const int key = peer.socket.get();
  epoll_event event = {};
  event.events = EPOLLIN;
  event.data.u64 = static_cast<uint64_t>(key) | kProcessBit;
  epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, peer.process.get(), &event);
  event.events = EPOLLRDHUP;
  event.data.u64 = static_cast<uint64_t>(key);
  epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, key, &event);
  peers_[key] = std::move(peer);
}

void Acceptor::DropPeer(int socket) {
  auto it = peers_.find(socket);
  if (it == peers_.end()) return;  // both of its descriptors had an event
  // Closing is not enough: the socket's copy at gRPC keeps the entry alive.
  epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, socket, nullptr);
  epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, it->second.process.get(), nullptr);
  peers_.erase(it);
}

}  // namespace ckptd
