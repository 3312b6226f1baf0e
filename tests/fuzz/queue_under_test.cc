#include "tests/fuzz/queue_under_test.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>

#include <filesystem>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "plugins/torch/torch_plugin.h"
#include "server/staging/pool_dir.h"
#include "tests/fuzz/error_table.h"
#include "tests/fuzz/fuzz.h"
#include "tests/server/testing/fake_backend.h"
#include "tests/server/testing/wait.h"

namespace ckptd {
namespace {

constexpr uint64_t kBudgetBytes = uint64_t{64} << 10;

bool IsInside(const std::string& path, const std::string& dir) {
  const std::string normal = std::filesystem::path(path).lexically_normal().string();
  return normal == dir || absl::StartsWith(normal, dir + "/");
}

bool MayFollow(v1::Save::State before, v1::Save::State after) {
  switch (before) {
    case v1::Save::STAGING:
      // STAGING again: it waits for memory. FAILED: it was rejected.
      return after == v1::Save::STAGING || after == v1::Save::QUEUED ||
             after == v1::Save::CANCELLED || after == v1::Save::FAILED;
    case v1::Save::QUEUED:
      return after == v1::Save::PERSISTING || after == v1::Save::CANCELLED ||
             after == v1::Save::SUPERSEDED;
    case v1::Save::PERSISTING:
      return after != v1::Save::STAGING;
    default:
      // Another save of that name: the first is forgotten.
      return after == v1::Save::STAGING;
  }
}

}  // namespace

QueueUnderTest::QueueUnderTest() {
  spdlog::set_level(spdlog::level::off);
  FUZZ_CHECK(backends_.Add(FakePlugin()).ok() && backends_.Add(TorchPlugin()).ok(), "backends");
  fs_.SetBefore([this](FsCall& call) -> std::optional<int64_t> {
    Guard(call);
    return std::nullopt;
  });
  auto lock = PreparePoolDir(posix_.get(), shm_.path());
  FUZZ_CHECK(lock.ok(), lock.status().ToString());
  auto journal = Journal::Open(posix_.get(), state_ / "journal.db");
  FUZZ_CHECK(journal.ok(), journal.status().ToString());
  journal_ = *std::move(journal);
  Pool::Options pool_options;
  pool_options.dir = shm_.path();
  pool_options.budget_bytes = kBudgetBytes;
  pool_ = std::make_unique<Pool>(&fs_, pool_options, *std::move(lock));
  SaveQueue::Options options;
  options.history = 4;
  options.retry_timeout = absl::ZeroDuration();
  queue_ =
      std::make_unique<SaveQueue>(&fs_, &clock_, journal_.get(), pool_.get(), &backends_, options);
  auto id = queue_->Subscribe(
      "", [this](const v1::Save& save, bool progress_only) { Follow(save, progress_only); });
  FUZZ_CHECK(id.ok(), id.status().ToString());
  subscription_ = *id;
}

QueueUnderTest::~QueueUnderTest() {
  queue_.reset();
  pool_.reset();
}

void QueueUnderTest::Guard(const FsCall& call) const {
  switch (call.op) {
    case FsOp::kOpen:
      if ((call.flags & (O_CREAT | O_TMPFILE | O_TRUNC | O_WRONLY | O_RDWR) & ~O_DIRECTORY) == 0) {
        return;
      }
      break;
    case FsOp::kRename:
      FUZZ_CHECK(IsInside(call.target, disk_.path()) || IsInside(call.target, shm_.path()),
                 call.target);
      break;
    case FsOp::kLink:
    case FsOp::kUnlink:
    case FsOp::kRemoveDirectory:
    case FsOp::kMakeDirectory:
      break;
    default:
      return;
  }
  FUZZ_CHECK(IsInside(call.path, disk_.path()) || IsInside(call.path, shm_.path()), call.path);
}

void QueueUnderTest::Follow(const v1::Save& save, bool progress_only) {
  CheckReadable(save);
  const absl::MutexLock lock(&mu_);
  const auto [it, is_new] = states_.try_emplace(save.name(), save.state());
  const std::string detail =
      absl::StrCat(v1::Save::State_Name(it->second), " -> ", save.ShortDebugString());
  if (is_new) {
    FUZZ_CHECK(save.state() == v1::Save::STAGING, detail);
  } else {
    FUZZ_CHECK(progress_only ? save.state() == it->second : MayFollow(it->second, save.state()),
               detail);
  }
  it->second = save.state();
  if (save.state() == v1::Save::PERSISTING) lengths_.insert(save.total_bytes());
  const bool failed = save.state() == v1::Save::FAILED || save.state() == v1::Save::CANCELLED;
  FUZZ_CHECK(!failed || save.has_error(), detail);
  FUZZ_CHECK(save.state() != v1::Save::SUCCEEDED || !save.has_error(), detail);
  FUZZ_CHECK(save.has_end_time() == (failed || save.state() == v1::Save::SUCCEEDED ||
                                     save.state() == v1::Save::SUPERSEDED),
             detail);
  FUZZ_CHECK(save.persisted_bytes() >= 0 && save.persisted_bytes() <= save.total_bytes(), detail);
}

void QueueUnderTest::CheckInvariants() const {
  const v1::QueueStatus status = queue_->GetStatus();
  FUZZ_CHECK(status.staging_count() >= 0 && status.queued_count() >= 0 &&
                 status.persisting_count() >= 0 && status.blocked_count() >= 0 &&
                 status.succeeded_count() >= 0 && status.failed_count() >= 0 &&
                 status.persisted_bytes() >= 0,
             status.ShortDebugString());
  const Pool::Usage usage = pool_->GetUsage();
  const std::string detail =
      absl::StrCat(usage.used_bytes, " used, ", usage.free_bytes, " free, ", usage.image_count,
                   " images, ", usage.waiting_count, " waiting");
  FUZZ_CHECK(usage.used_bytes <= kBudgetBytes && usage.free_bytes <= usage.used_bytes, detail);
  FUZZ_CHECK(usage.image_count >= 0 && usage.waiting_count == 0, detail);
}

void QueueUnderTest::Finish() {
  FUZZ_CHECK(queue_->SessionCount() == 0, "a session is open");
  const int pending = queue_->Drain(Soon());
  FUZZ_CHECK(pending == 0, absl::StrCat(pending, " do not end"));
  CheckInvariants();
  const v1::QueueStatus status = queue_->GetStatus();
  FUZZ_CHECK(status.staging_count() + status.queued_count() + status.persisting_count() == 0,
             status.ShortDebugString());
  // Images that are being faulted in for a Reserve are not done by then.
  const auto all_free = [&] {
    const Pool::Usage usage = pool_->GetUsage();
    return usage.used_bytes == usage.free_bytes;
  };
  FUZZ_CHECK(Eventually(all_free), "an image did not come back");
  for (const std::string& name : shm_.List()) {
    FUZZ_CHECK(name == ".free" || name == ".notes", name);
  }
  queue_->Unsubscribe(subscription_);
  queue_.reset();
  pool_.reset();
  for (const std::string& name : shm_.List()) FUZZ_CHECK(false, absl::StrCat("left over: ", name));
  const absl::MutexLock lock(&mu_);
  for (const auto& entry : std::filesystem::recursive_directory_iterator(disk_.path())) {
    if (entry.is_directory()) continue;
    const std::string name = entry.path().filename().string();
    FUZZ_CHECK(entry.is_regular_file() && !absl::StartsWith(name, ".ckptd-"), name);
    FUZZ_CHECK(lengths_.count(static_cast<int64_t>(entry.file_size())) == 1,
               absl::StrCat(name, " has ", entry.file_size(), " bytes, as no save"));
  }
}

}  // namespace ckptd
