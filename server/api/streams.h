#ifndef CKPTD_SERVER_API_STREAMS_H_
#define CKPTD_SERVER_API_STREAMS_H_

#include <functional>
#include <map>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "ckptd/v1/checkpoint.grpc.pb.h"
#include "server/queue/save_queue.h"

namespace ckptd {

// With what a stream ends when the daemon does.
absl::Status EndingStream();

// The streams that clients hold open, so that the daemon can end them. Thread-safe.
class OpenStreams {
 public:
  OpenStreams() = default;
  // Waits for a Remove that is about to return.
  ~OpenStreams() { absl::MutexLock lock(&mu_); }
  OpenStreams(const OpenStreams&) = delete;
  OpenStreams& operator=(const OpenStreams&) = delete;

  // Adds a stream by what ends it; after End, ends it at once. `end` may be called from any thread
  // until Remove has returned.
  void Add(const void* stream, std::function<void()> end);
  void Remove(const void* stream);

  // Ends all streams, and those to come.
  void End();

 private:
  absl::Mutex mu_;
  std::map<const void*, std::function<void()>> streams_ ABSL_GUARDED_BY(mu_);
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
};

// The stream of OpenSession: opens a session, tells it, and closes it when the client is gone.
// Deletes itself when gRPC is done with it.
grpc::ServerWriteReactor<v1::SessionEvent>* NewSessionStream(OpenStreams* streams, SaveQueue* queue,
                                                             const std::string& client,
                                                             const std::string& version);

// The stream of WatchSaves. Deletes itself when gRPC is done with it.
grpc::ServerWriteReactor<v1::Save>* NewWatchStream(OpenStreams* streams, SaveQueue* queue,
                                                   const v1::WatchSavesRequest& request);

}  // namespace ckptd

#endif  // CKPTD_SERVER_API_STREAMS_H_
