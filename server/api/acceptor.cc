#include "server/api/acceptor.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
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
// In epoll's data: a peer's key, with this bit where the event is about its process; or one of
// ours, which no peer has. Not descriptors: those are used again while events of the old ones wait.
constexpr uint64_t kProcessBit = uint64_t{1} << 63;
constexpr uint64_t kListener = 0;
constexpr uint64_t kStopEvent = 1;

// Returns 0 or -errno.
int Watch(int epoll, int fd, uint32_t events, uint64_t data) {
  epoll_event event = {};
  event.events = events;
  event.data.u64 = data;
  return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : -errno;
}

// gRPC's descriptor, our copy, and the process.
constexpr size_t kDescriptorsPerPeer = 3;
constexpr int kPauseMilliseconds = 100;

size_t MaxPeers() {
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) limit.rlim_cur = 1024;
  return std::max<size_t>(limit.rlim_cur / 2 / kDescriptorsPerPeer, 2);
}

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
  const int bind_error = errno;
  umask(old_umask);
  if (bound != 0) return OsError(object, "bind it", bind_error);
  if (listen(listener_.get(), kBacklog) != 0) return OsError(object, "listen on it", errno);

  max_peers_ = MaxPeers();
  epoll_ = FileDescriptor(fs_, epoll_create1(EPOLL_CLOEXEC));
  stop_event_ = FileDescriptor(fs_, eventfd(0, EFD_CLOEXEC));
  if (!epoll_ || !stop_event_) return OsError(object, "wait for connections", errno);
  int error = Watch(epoll_.get(), listener_.get(), EPOLLIN, kListener);
  if (error == 0) error = Watch(epoll_.get(), stop_event_.get(), EPOLLIN, kStopEvent);
  if (error != 0) return OsError(object, "wait for connections", -error);
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
    const int count = epoll_wait(epoll_.get(), events, 64, paused_ ? kPauseMilliseconds : -1);
    // Some time has passed, or a peer has gone and left its descriptors.
    if (paused_) Resume();
    for (int i = 0; i < count; ++i) {
      const uint64_t key = events[i].data.u64;
      if (key == kStopEvent) return;
      if (key == kListener) {
        AcceptOne();
      } else {
        DropPeer(key & ~kProcessBit, (key & kProcessBit) != 0);
      }
    }
  }
}

void Acceptor::AcceptOne() {
  const int fd = accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (fd < 0) {
    if (errno != EAGAIN && errno != ECONNABORTED && errno != EINTR) Pause(errno);
    return;
  }
  ucred peer = {};
  socklen_t length = sizeof(peer);
  const bool known = getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0;
  if (!HasRoom(peer.pid)) {
    close(fd);
    return;
  }
  if (const int error = Follow(fd, peer.pid); error < 0) {
    close(fd);
    Pause(-error);
    return;
  }
  full_ = false;
  if (known && peer.uid == geteuid()) {
    handlers_.accept(fd);
    return;
  }
  spdlog::warn("socket {}: refused a connection of uid {} (pid {}); this daemon serves uid {}",
               path_, peer.uid, peer.pid, geteuid());
  handlers_.refuse(fd);
}

// Those whose pid is 0, in PID namespaces that we do not see, cannot be told apart.
bool Acceptor::HasRoom(pid_t pid) {
  auto of_process = peers_of_.find(pid);
  const size_t count = pid <= 0 || of_process == peers_of_.end() ? 0 : of_process->second;
  if (peers_.size() < max_peers_ && count < max_peers_ / 2) return true;
  if (!full_) {
    spdlog::warn(
        "socket {}: closes new connections of pid {} at once: it has {} and all processes have {}; "
        "at most {} are taken, and half of them of one process; raise the limit on open files "
        "(ulimit -n)",
        path_, pid, count, peers_.size(), max_peers_);
  }
  full_ = true;
  return false;
}

// Without a process to watch the connection alone tells: where the pid is 0, and where the process
// has ended already.
int Acceptor::Follow(int fd, pid_t pid) {
  Peer peer;
  peer.pid = pid;
  peer.socket = FileDescriptor(fs_, fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!peer.socket) return -errno;
  const uint64_t key = next_key_++;
  int error = Watch(epoll_.get(), peer.socket.get(), EPOLLRDHUP, key);
  if (error < 0) return error;
  if (pid > 0) {
    peer.process = FileDescriptor(fs_, static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
    if (!peer.process && errno != ESRCH) error = -errno;
  }
  if (peer.process) error = Watch(epoll_.get(), peer.process.get(), EPOLLIN, key | kProcessBit);
  if (error < 0) {
    epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, peer.socket.get(), nullptr);
    return error;
  }
  ++peers_of_[pid];
  peers_[key] = std::move(peer);
  return 0;
}

// Either the process has ended, and its connection with it, or gRPC closed the connection.
void Acceptor::DropPeer(uint64_t key, bool process_ended) {
  auto it = peers_.find(key);
  if (it == peers_.end()) return;  // both of its descriptors had an event
  const Peer& peer = it->second;
  if (process_ended) shutdown(peer.socket.get(), SHUT_RDWR);
  // Closing is not enough: the socket's copy at gRPC keeps the entry alive.
  epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, peer.socket.get(), nullptr);
  if (peer.process) epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, peer.process.get(), nullptr);
  auto of_process = peers_of_.find(peer.pid);
  if (--of_process->second == 0) peers_of_.erase(of_process);
  peers_.erase(it);
}

// A level-triggered listener would report the same connection again and again.
void Acceptor::Pause(int error) {
  if (!full_) {
    spdlog::error(
        "{}", std::string(
                  OsError(absl::StrCat("socket ", path_), "accept a connection", error).message()));
  }
  full_ = true;
  paused_ = epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, listener_.get(), nullptr) == 0;
}

void Acceptor::Resume() { paused_ = Watch(epoll_.get(), listener_.get(), EPOLLIN, kListener) < 0; }

}  // namespace ckptd
