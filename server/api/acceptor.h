#ifndef CKPTD_SERVER_API_ACCEPTOR_H_
#define CKPTD_SERVER_API_ACCEPTOR_H_

#include <sys/types.h>

#include <cstdint>
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
// Connections are bounded by the process's limit on open files as it is at Bind: all of them take
// at most half of it, so that saves find descriptors, and those of one process half of that, so
// that it does not keep others out. Those beyond are closed at once; gRPC's clients try again
// later. When there is no descriptor for a connection all the same, it waits in the backlog.
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
  // A connection that was handed over: a copy of its socket, and its process, where that is known.
  struct Peer {
    FileDescriptor socket;
    FileDescriptor process;
    pid_t pid = 0;
  };

  Acceptor(FileSystem* fs, std::string path) : fs_(fs), path_(std::move(path)) {}
  absl::Status TakeLock();
  absl::Status Listen();
  void Loop();
  void AcceptOne();
  // Whether there is room for one more connection of this process.
  bool HasRoom(pid_t pid);
  // Returns 0, or -errno as where there are no descriptors for it.
  int Follow(int fd, pid_t pid);
  void DropPeer(uint64_t key, bool process_ended);
  // Leaves new connections in the backlog for a while; takes them again.
  void Pause(int error);
  void Resume();

  FileSystem* const fs_;
  const std::string path_;
  FileDescriptor lock_;
  FileDescriptor listener_;
  FileDescriptor epoll_;
  FileDescriptor stop_event_;
  size_t max_peers_ = 0;
  Handlers handlers_;
  std::thread thread_;

  // ---- Used by the thread alone.
  uint64_t next_key_ = 2;
  std::map<uint64_t, Peer> peers_;
  std::map<pid_t, size_t> peers_of_;
  bool paused_ = false;
  // Whether the last connection found no room, or no descriptor: the log says so once.
  bool full_ = false;
};

}  // namespace ckptd

#endif  // CKPTD_SERVER_API_ACCEPTOR_H_
