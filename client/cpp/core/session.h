#ifndef CKPTD_CLIENT_CPP_CORE_SESSION_H_
#define CKPTD_CLIENT_CPP_CORE_SESSION_H_

#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "ckptd/v1/checkpoint.grpc.pb.h"

namespace ckptd {

// An OpenSession stream, held open by a thread. Thread-safe.
class Session {
 public:
  // Opens a session in the name of `client`. With `wait_for_daemon` it waits until `deadline` for
  // a daemon to come up; without, a missing one is UNAVAILABLE at once.
  static absl::StatusOr<std::shared_ptr<Session>> Open(
      std::shared_ptr<v1::CheckpointService::Stub> stub, const std::string& client,
      absl::Time deadline, bool wait_for_daemon);

  // Ends the stream. The daemon then cancels what this session was staging.
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Goes into the requests of trainers.
  const std::string& id() const { return id_; }

  // Ends the stream ahead of the destructor: the daemon has been found gone.
  void End();

  // Whether the stream is still open, as far as this process knows.
  bool alive() const;

 private:
  explicit Session(std::shared_ptr<v1::CheckpointService::Stub> stub) : stub_(std::move(stub)) {}

  void Run(const v1::OpenSessionRequest& request);

  const std::shared_ptr<v1::CheckpointService::Stub> stub_;
  grpc::ClientContext context_;
  std::thread thread_;
  std::string id_;  // Set before Open returns.

  mutable absl::Mutex mu_;
  bool opened_ ABSL_GUARDED_BY(mu_) = false;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  std::string first_id_ ABSL_GUARDED_BY(mu_);
  absl::Status status_ ABSL_GUARDED_BY(mu_);
};

}  // namespace ckptd

#endif  // CKPTD_CLIENT_CPP_CORE_SESSION_H_
