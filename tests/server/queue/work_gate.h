#ifndef CKPTD_TESTS_SERVER_QUEUE_WORK_GATE_H_
#define CKPTD_TESTS_SERVER_QUEUE_WORK_GATE_H_

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace ckptd {

// Where workers stop until a test says how they go on. Thread-safe.
class WorkGate {
 public:
  // What a file system answers in place of a call; nothing: it makes the call.
  using Answer = std::optional<int64_t>;

  // Stops the calling thread, which does the work `key`, until it is let go on.
  Answer Pass(const std::string& key);
  std::set<std::string> Waiting() const;
  void Let(const std::string& key, Answer answer);
  // Nobody stops any more, until Close.
  void Open(Answer answer);
  void Close();

 private:
  mutable absl::Mutex mu_;
  std::set<std::string> waiting_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, Answer> answers_ ABSL_GUARDED_BY(mu_);
  bool open_ ABSL_GUARDED_BY(mu_) = false;
  Answer answer_of_all_ ABSL_GUARDED_BY(mu_);
};

}  // namespace ckptd

#endif  // CKPTD_TESTS_SERVER_QUEUE_WORK_GATE_H_
