#include "tests/server/queue/faults.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"

namespace ckptd {

SaveQueue::Options FaultsTest::Options() {
  SaveQueue::Options options;
  options.retry_timeout = absl::InfiniteDuration();
  options.first_retry_delay = absl::Milliseconds(1);
  options.max_retry_delay = absl::Milliseconds(1);
  return options;
}

// Thousands of messages would hide the call that counts.
void FaultsTest::SetUp() {
  spdlog::set_level(spdlog::level::off);
  open_files_ = CountOpenFiles();
}

void FaultsTest::TearDown() { spdlog::set_level(spdlog::level::info); }

void FaultsTest::ForEachCall(size_t least, const std::function<std::vector<FsCall>(int n)>& one) {
  size_t n = 1;
  size_t made = 0;
  do {
    SCOPED_TRACE(absl::StrCat(GetParam().name, " from call ", n));
    std::vector<FsCall> calls = one(static_cast<int>(n));
    made = calls.size();
    calls.resize(std::min(made, n));
    if (HasFailure()) {
      FAIL() << "after these calls, the last of which failed:\n" << Describe(calls);
    }
  } while (made >= n++);
  EXPECT_GT(n, least) << "fewer calls than there are steps";
}

void FaultsTest::FailNth(int n) {
  fs_.Reset();
  if (GetParam().error != kShortWrite) return fs_.FailNth(n, GetParam().error);
  fs_.SetBefore([n, made = std::make_shared<std::atomic<int>>(0)](FsCall& call) {
    if (++*made == n && call.op == FsOp::kWrite) call.length = (call.length + 1) / 2;
    return std::optional<int64_t>();
  });
}

void FaultsTest::ExpectFault(const absl::Status& status) const {
  EXPECT_FALSE(status.ok());
  const auto& reasons = GetParam().reasons;
  EXPECT_EQ(std::count(reasons.begin(), reasons.end(), ReasonOf(status)), 1) << status;
  EXPECT_THAT(status, Says("cannot "));
}

bool FaultsTest::Later(const std::function<bool()>& condition) {
  return Eventually([&] {
    if (condition()) return true;
    clock_.Advance(absl::Milliseconds(1));
    return false;
  });
}

void FaultsTest::FinishAll() {
  EXPECT_TRUE(Later([&] { return Flush("jobs/-", "", absl::Now()).ok(); })) << "does not end";
}

void FaultsTest::ExpectNothingLeft() {
  const Pool::Usage usage = pool_->GetUsage();
  EXPECT_EQ(usage.used_bytes, usage.free_bytes);
  fs_.Reset();
  keep_images_ = false;
  ASSERT_OK(TryRestart(Options()));
  EXPECT_TRUE(LeasedImages().empty());
  EXPECT_TRUE(ListDir(shm_ / ".notes").empty());
  StopAll();
  EXPECT_EQ(CountOpenFiles(), open_files_);
}

}  // namespace ckptd
