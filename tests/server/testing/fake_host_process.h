#ifndef CKPTD_TESTS_SERVER_TESTING_FAKE_HOST_PROCESS_H_
#define CKPTD_TESTS_SERVER_TESTING_FAKE_HOST_PROCESS_H_

#include <deque>
#include <string>
#include <utility>

#include "absl/synchronization/mutex.h"
#include "server/backend/hosts.h"
#include "tests/server/testing/wait.h"

namespace ckptd {

// A host process without a process: does what the test says. Thread-safe.
class FakeHostProcess : public HostConnection {
 public:
  explicit FakeHostProcess(BackendHosts* hosts) : hosts_(hosts) {}
  ~FakeHostProcess() override { hosts_->Detach(this); }

  void Attach(const std::string& id) {
    v1::HostReport::Attach attach;
    attach.set_host(id);
    hosts_->Attach(attach, this);
  }
  void Detach() { hosts_->Detach(this); }
  // The next message; an empty one where none comes.
  v1::HostTask Next() {
    absl::MutexLock lock(&mu_);
    auto there = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return !tasks_.empty(); };
    if (!mu_.AwaitWithDeadline(absl::Condition(&there), Soon())) return {};
    v1::HostTask task = std::move(tasks_.front());
    tasks_.pop_front();
    return task;
  }
  void Done(const v1::HostTask& task, int code = 0, const std::string& message = "") {
    v1::HostReport report;
    report.mutable_done()->set_task_id(task.task_id());
    report.mutable_done()->mutable_status()->set_code(code);
    report.mutable_done()->mutable_status()->set_message(message);
    hosts_->Report(this, report);
  }
  bool WaitUntilEnded() {
    absl::MutexLock lock(&mu_);
    return mu_.AwaitWithDeadline(absl::Condition(&ended_), Soon());
  }
  absl::Status end() {
    absl::MutexLock lock(&mu_);
    return end_;
  }
  bool has_task() {
    absl::MutexLock lock(&mu_);
    return !tasks_.empty();
  }

  void Send(v1::HostTask task) override {
    absl::MutexLock lock(&mu_);
    tasks_.push_back(std::move(task));
  }
  void End(const absl::Status& status) override {
    absl::MutexLock lock(&mu_);
    ended_ = true;
    end_ = status;
  }

 private:
  BackendHosts* const hosts_;
  absl::Mutex mu_;
  std::deque<v1::HostTask> tasks_ ABSL_GUARDED_BY(mu_);
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status end_ ABSL_GUARDED_BY(mu_);
};

}  // namespace ckptd

#endif  // CKPTD_TESTS_SERVER_TESTING_FAKE_HOST_PROCESS_H_
