#ifndef CKPTD_SERVER_QUEUE_BOUNDED_CALLS_H_
#define CKPTD_SERVER_QUEUE_BOUNDED_CALLS_H_

#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"

namespace ckptd {

// Makes calls that may hang, such as those to a network file system that is away, on threads of its
// own, so that whoever wants the result waits only so long. Thread-safe.
class BoundedCalls {
 public:
  explicit BoundedCalls(int max_threads) : max_threads_(max_threads) {}
  // Waits for the calls that are under way.
  ~BoundedCalls();

  // Whether `call` has returned within `patience`. If not it goes on, or begins later: all that it
  // uses must live on by itself. False at once where all threads hang.
  bool Run(std::function<void()> call, absl::Duration patience);

 private:
  struct Call {
    std::function<void()> call;
    std::shared_ptr<absl::Notification> done;
  };
  void Loop();

  const int max_threads_;
  absl::Mutex mu_;
  std::deque<Call> calls_ ABSL_GUARDED_BY(mu_);
  // Threads that wait for a call, or will as soon as they have begun.
  int idle_ ABSL_GUARDED_BY(mu_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_ ABSL_GUARDED_BY(mu_);
};

}  // namespace ckptd

#endif  // CKPTD_SERVER_QUEUE_BOUNDED_CALLS_H_
