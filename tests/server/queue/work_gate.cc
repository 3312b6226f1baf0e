#include "tests/server/queue/work_gate.h"

namespace ckptd {

WorkGate::Answer WorkGate::Pass(const std::string& key) {
  absl::MutexLock lock(&mu_);
  if (open_) return answer_of_all_;
  waiting_.insert(key);
  auto answered = [&]()
                      ABSL_SHARED_LOCKS_REQUIRED(mu_) { return open_ || answers_.count(key) != 0; };
  mu_.Await(absl::Condition(&answered));
  waiting_.erase(key);
  if (answers_.count(key) == 0) return answer_of_all_;
  const Answer answer = answers_.at(key);
  answers_.erase(key);
  return answer;
}

std::set<std::string> WorkGate::Waiting() const {
  absl::MutexLock lock(&mu_);
  return waiting_;
}

void WorkGate::Let(const std::string& key, Answer answer) {
  absl::MutexLock lock(&mu_);
  waiting_.erase(key);
  answers_[key] = answer;
}

void WorkGate::Open(Answer answer) {
  absl::MutexLock lock(&mu_);
  open_ = true;
  answer_of_all_ = answer;
}

void WorkGate::Close() {
  absl::MutexLock lock(&mu_);
  open_ = false;
  answers_.clear();
}

}  // namespace ckptd
