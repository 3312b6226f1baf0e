#ifndef CKPTD_SERVER_API_ACCEPTOR_H_
#define CKPTD_SERVER_API_ACCEPTOR_H_

#include <sys/types.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "server/os/file_system.h"

namespace ckptd {

// The daemon's unix socket. Takes connections itself, because gRPC tells nobody who is at the other
// end, and asks the kernel (SO_PEERCRED): connections of the daemon's own uid go to `accept`, those
// of others to `refuse`. Both own the descriptor they are given.
//
// When a client process ends, its connections are shut down at once, also where a child that it
// forked still holds a copy of the descriptor: a session must not outlive the trainer.
class Acceptor {
 public:
  using Handler = std::function<void(int fd)>;
  struct Handlers {
    Handler accept;
    Handler refuse;
  };

  // Takes the lock "`path`.lock" and binds `path`, mode 0600, in a folder that is closed to others.
  // FAILED_PRECONDITION (ALREADY_RUNNING) where another daemon holds the lock. Connections wait in
  // the backlog until Start.
  static absl::StatusOr<std::unique_ptr<Acceptor>> Bind(FileSystem* fs, const std::string& path);
  // Calls Stop and removes the socket.
  ~Acceptor();
  Acceptor(const Acceptor&) = delete;
  Acceptor& operator=(const Acceptor&) = delete;

  // Begins to accept, on a thread of its own.
  void Start(Handlers handlers);

  // Accepts no more. Connections that were handed over live on. Idempotent.
  void Stop();

 private:
  // A connection that was handed over: a copy of its socket, and its process.
  struct Peer {
    FileDescriptor socket;
    FileDescriptor process;
  };

  Acceptor(FileSystem* fs, std::string path) : fs_(fs), path_(std::move(path)) {}
  absl::Status TakeLock();
  absl::Status Listen();
  void Loop();
  void AcceptOne();
  void Follow(int fd, pid_t pid);
  void DropPeer(int socket);

  FileSystem* const fs_;
  const std::string path_;
  FileDescriptor lock_;
  FileDescriptor listener_;
  FileDescriptor epoll_;
  FileDescriptor stop_event_;
  Handlers handlers_;
  std::thread thread_;
  // By the copy's descriptor; used by the thread alone.
  std::map<int, Peer> peers_;
};

}  // namespace ckptd

#endif  // CKPTD_SERVER_API_ACCEPTOR_H_
