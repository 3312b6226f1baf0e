#include "server/queue/bounded_calls.h"

#include <utility>

namespace ckptd {

BoundedCalls::~BoundedCalls() {
  std::vector<std::thread> threads;
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
    threads.swap(threads_);
  }
  for (std::thread& thread : threads) thread.join();
}

bool BoundedCalls::Run(std::function<void()> call, absl::Duration patience) {
  auto done = std::make_shared<absl::Notification>();
  {
    absl::MutexLock lock(&mu_);
    if (idle_ <= static_cast<int>(calls_.size())) {
      if (static_cast<int>(threads_.size()) >= max_threads_) return false;
      threads_.emplace_back([this] { Loop(); });
      ++idle_;
    }
    calls_.push_back({std::move(call), done});
  }
  return done->WaitForNotificationWithTimeout(patience);
}

void BoundedCalls::Loop() {
  for (;;) {
    Call next;
    {
      absl::MutexLock lock(&mu_);
      auto wanted = [this]()
                        ABSL_SHARED_LOCKS_REQUIRED(mu_) { return stopping_ || !calls_.empty(); };
      mu_.Await(absl::Condition(&wanted));
      if (calls_.empty()) return;
      next = std::move(calls_.front());
      calls_.pop_front();
      --idle_;
    }
    next.call();
    {
      absl::MutexLock lock(&mu_);
      ++idle_;
    }
    // Whoever hears of it finds this thread idle.
    next.done->Notify();
  }
}

}  // namespace ckptd
