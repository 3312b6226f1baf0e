#include "tests/server/testing/wait.h"

#include <thread>

#include "absl/time/clock.h"

namespace ckptd {

absl::Time Soon() { return absl::Now() + kPatience; }

bool Eventually(const std::function<bool()>& condition) {
  const absl::Time deadline = Soon();
  while (!condition()) {
    if (absl::Now() > deadline) return false;
    std::this_thread::yield();
  }
  return true;
}

void Gate::Pass() {
  absl::MutexLock lock(&mu_);
  ++arrived_;
  auto may_pass = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return open_ || permits_ > 0; };
  mu_.Await(absl::Condition(&may_pass));
  if (!open_) --permits_;
}

bool Gate::WaitForArrivals(int count) {
  absl::MutexLock lock(&mu_);
  auto arrived = [&]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return arrived_ >= count; };
  return mu_.AwaitWithDeadline(absl::Condition(&arrived), Soon());
}

void Gate::Let(int count) {
  absl::MutexLock lock(&mu_);
  permits_ += count;
}

void Gate::Close() {
  absl::MutexLock lock(&mu_);
  open_ = false;
}

void Gate::Open() {
  absl::MutexLock lock(&mu_);
  open_ = true;
}

}  // namespace ckptd
