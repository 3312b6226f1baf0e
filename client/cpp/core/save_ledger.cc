#include "client/cpp/core/save_ledger.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cpp/core/save_state.h"
#include "proto/status/error_info.h"

namespace ckptd {

void SaveLedger::Accepted(const std::string& name) {
  absl::MutexLock lock(&mu_);
  open_.insert(name);
}

void SaveLedger::Update(const v1::Save& save) {
  if (!HasEnded(save)) return;
  absl::MutexLock lock(&mu_);
  if (open_.erase(save.name()) == 0) return;
  if (absl::Status outcome = Outcome(save); !outcome.ok()) failures_.push_back(std::move(outcome));
}

void SaveLedger::Lost(const std::string& name) {
  absl::MutexLock lock(&mu_);
  if (open_.erase(name) == 0) return;
  failures_.push_back(MakeError(
      absl::StatusCode::kNotFound, "SAVE_NOT_FOUND",
      absl::StrCat(name,
                   ": was accepted, but the daemon that runs now does not know it: the one "
                   "before has ended without making it durable")));
}

void SaveLedger::Told(const std::string& name) {
  absl::MutexLock lock(&mu_);
  open_.erase(name);
}

void SaveLedger::AddFailure(absl::Status failure) {
  absl::MutexLock lock(&mu_);
  failures_.push_back(std::move(failure));
}

std::vector<std::string> SaveLedger::Open() const {
  absl::MutexLock lock(&mu_);
  return {open_.begin(), open_.end()};
}

std::vector<absl::Status> SaveLedger::TakeFailures() {
  absl::MutexLock lock(&mu_);
  return std::exchange(failures_, {});
}

}  // namespace ckptd
