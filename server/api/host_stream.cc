#include "server/api/host_stream.h"

#include <deque>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "proto/status/error_info.h"

namespace ckptd {
namespace {

class HostStream : public grpc::ServerBidiReactor<v1::HostReport, v1::HostTask>,
                   private HostConnection {
 public:
  HostStream(OpenStreams* streams, BackendHosts* hosts) : streams_(streams), hosts_(hosts) {
    StartRead(&report_);
    streams_->Add(this, [this] { End(EndingStream()); });
  }

  void OnReadDone(bool ok) override {
    if (!ok) return End(absl::CancelledError("stream: its host has ended it"));
    if (report_.has_attach()) {
      if (std::exchange(attached_, true)) {
        return End(MakeError(absl::StatusCode::kInvalidArgument, "INVALID_REQUEST",
                             "host: attaches itself twice"));
      }
      hosts_->Attach(report_.attach(), this);
    } else {
      hosts_->Report(this, report_);
    }
    StartRead(&report_);
  }
  void OnWriteDone(bool ok) override {
    absl::MutexLock lock(&mu_);
    pending_.pop_front();
    if (ok && !finished_ && !pending_.empty()) StartWrite(&pending_.front());
    if (finished_ && !finish_sent_) FinishNow();
  }
  void OnCancel() override { End(absl::CancelledError("stream: its host has ended it")); }
  void OnDone() override {
    streams_->Remove(this);
    hosts_->Detach(this);
    mu_.Lock();  // for ThreadSanitizer, as in streams.cc
    mu_.Unlock();
    delete this;
  }

 private:
  void Send(v1::HostTask task) override {
    absl::MutexLock lock(&mu_);
    if (finished_) return;
    pending_.push_back(std::move(task));
    if (pending_.size() == 1) StartWrite(&pending_.front());
  }
  // After the write that is under way, if there is one.
  void End(const absl::Status& status) override {
    absl::MutexLock lock(&mu_);
    if (std::exchange(finished_, true)) return;
    end_ = status;
    if (pending_.empty()) FinishNow();
  }
  void FinishNow() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    finish_sent_ = true;
    Finish(ToGrpc(end_));
  }

  OpenStreams* const streams_;
  BackendHosts* const hosts_;
  // Of the thread that reads.
  v1::HostReport report_;
  bool attached_ = false;
  absl::Mutex mu_;
  // The first is being written.
  std::deque<v1::HostTask> pending_ ABSL_GUARDED_BY(mu_);
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  bool finish_sent_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status end_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

grpc::ServerBidiReactor<v1::HostReport, v1::HostTask>* NewHostStream(OpenStreams* streams,
                                                                     BackendHosts* hosts) {
  return new HostStream(streams, hosts);
}

}  // namespace ckptd
