#include "server/api/streams.h"

#include <deque>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "proto/status/error_info.h"

namespace ckptd {
namespace {

constexpr absl::Duration kDefaultInterval = absl::Milliseconds(500);

bool HasEnded(const v1::Save& save) { return save.end_time().seconds() != 0; }

// Holds a session open: nothing is written after the first event.
class SessionStream : public grpc::ServerWriteReactor<v1::SessionEvent> {
 public:
  SessionStream(OpenStreams* streams, SaveQueue* queue, const std::string& client,
                const std::string& version)
      : streams_(streams), queue_(queue) {
    event_.set_session_id(queue_->OpenSession(client));
    event_.set_version(version);
    StartWrite(&event_);
    streams_->Add(this, [this] { FinishOnce(ToGrpc(EndingStream())); });
  }

  void OnCancel() override {
    queue_->CloseSession(event_.session_id());
    FinishOnce(grpc::Status::CANCELLED);
  }
  void OnWriteDone(bool ok) override {
    if (!ok) FinishOnce(grpc::Status::CANCELLED);
  }
  void OnDone() override {
    streams_->Remove(this);
    queue_->CloseSession(event_.session_id());
    delete this;
  }

 private:
  void FinishOnce(const grpc::Status& status) {
    if (!finished_.exchange(true)) Finish(status);
  }

  OpenStreams* const streams_;
  SaveQueue* const queue_;
  v1::SessionEvent event_;
  std::atomic<bool> finished_{false};
};

// Sends what the queue tells, one message at a time; the rest waits in `pending_`.
class WatchStream : public grpc::ServerWriteReactor<v1::Save> {
 public:
  WatchStream(OpenStreams* streams, SaveQueue* queue, const v1::WatchSavesRequest& request)
      : streams_(streams), queue_(queue), one_(!request.name().empty()) {
    if (request.has_min_interval()) {
      interval_ = absl::Seconds(request.min_interval().seconds()) +
                  absl::Nanoseconds(request.min_interval().nanos());
    }
    absl::StatusOr<uint64_t> id = queue_->Subscribe(
        request.name(),
        [this](const v1::Save& save, bool progress_only) { Push(save, progress_only); });
    if (id.ok()) {
      subscription_ = *id;
    } else {
      FinishOnce(ToGrpc(id.status()));
    }
    streams_->Add(this, [this] { FinishOnce(ToGrpc(EndingStream())); });
  }

  void OnCancel() override { FinishOnce(grpc::Status::CANCELLED); }
  void OnWriteDone(bool ok) override {
    if (!ok) return FinishOnce(grpc::Status::CANCELLED);
    bool last = false;
    {
      absl::MutexLock lock(&mu_);
      last = one_ && HasEnded(pending_.front());
      pending_.pop_front();
      if (!last && !pending_.empty() && !finished_) StartWrite(&pending_.front());
    }
    if (last) FinishOnce(grpc::Status::OK);
  }
  void OnDone() override {
    streams_->Remove(this);
    queue_->Unsubscribe(subscription_);
    // gRPC has ordered this after all else, but ThreadSanitizer cannot see how.
    mu_.Lock();
    mu_.Unlock();
    delete this;
  }

 private:
  void Push(const v1::Save& save, bool progress_only) {
    absl::MutexLock lock(&mu_);
    if (finished_) return;
    absl::Time& last_sent = last_sent_[save.name()];
    const absl::Time now = absl::Now();
    // Progress that nobody has waited for long enough, or that has not even been sent yet, gives
    // way; a change of state never does.
    if (progress_only && (now - last_sent < interval_ || !pending_.empty())) return;
    last_sent = now;
    if (HasEnded(save)) last_sent_.erase(save.name());
    pending_.push_back(save);
    if (pending_.size() == 1) StartWrite(&pending_.front());
  }
  void FinishOnce(const grpc::Status& status) {
    absl::MutexLock lock(&mu_);
    if (finished_) return;
    finished_ = true;
    Finish(status);
  }

  OpenStreams* const streams_;
  SaveQueue* const queue_;
  const bool one_;
  absl::Duration interval_ = kDefaultInterval;
  uint64_t subscription_ = 0;
  absl::Mutex mu_;
  // The first is being written.
  std::deque<v1::Save> pending_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, absl::Time> last_sent_ ABSL_GUARDED_BY(mu_);
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace

absl::Status EndingStream() {
  return MakeError(absl::StatusCode::kUnavailable, "DRAINING",
                   "stream: the daemon is ending; open a new one when it is back");
}

void OpenStreams::Add(const void* stream, std::function<void()> end) {
  absl::MutexLock lock(&mu_);
  if (ended_) end();
  streams_[stream] = std::move(end);
}

void OpenStreams::Remove(const void* stream) {
  absl::MutexLock lock(&mu_);
  streams_.erase(stream);
}

void OpenStreams::End() {
  absl::MutexLock lock(&mu_);
  ended_ = true;
  for (const auto& [stream, end] : streams_) end();
}

grpc::ServerWriteReactor<v1::SessionEvent>* NewSessionStream(OpenStreams* streams, SaveQueue* queue,
                                                             const std::string& client,
                                                             const std::string& version) {
  return new SessionStream(streams, queue, client, version);
}

grpc::ServerWriteReactor<v1::Save>* NewWatchStream(OpenStreams* streams, SaveQueue* queue,
                                                   const v1::WatchSavesRequest& request) {
  return new WatchStream(streams, queue, request);
}

}  // namespace ckptd
