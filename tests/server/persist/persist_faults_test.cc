// Every system call of a persist fails in its turn: the target is the old checkpoint or the new
// one, whole, nothing is beside it, the error says why, and the next persist works.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string>
#include <tuple>

#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "server/persist/names.h"
#include "server/persist/persister.h"
#include "tests/server/persist/persist_fixture.h"

namespace ckptd {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::IsEmpty;

struct Errno {
  int error;
  StatusCode code;
  const char* reason;
};

constexpr Errno kErrors[] = {
    {ENOSPC, StatusCode::kResourceExhausted, "STORAGE_FULL"},
    {EIO, StatusCode::kInternal, "STORAGE_ERROR"},
    {EMFILE, StatusCode::kResourceExhausted, "STORAGE_ERROR"},
    {EROFS, StatusCode::kFailedPrecondition, "READ_ONLY_STORAGE"},
    {EACCES, StatusCode::kPermissionDenied, "PERMISSION_DENIED"},
};

// Which error; whether there is an old checkpoint; whether the file system has unnamed files.
class PersistFaultsTest : public PersistFixture,
                          public testing::WithParamInterface<std::tuple<Errno, bool, bool>> {
 protected:
  // In memory, where a sync takes no time.
  PersistFaultsTest() : PersistFixture(TempDir::Place::kMemory) {}

  static constexpr size_t kOldSize = 5000;
  static constexpr size_t kNewSize = 70001;

  void Prepare(bool overwrite, bool unnamed) {
    fs_.Reset();
    std::filesystem::remove(target_.path);
    if (overwrite) ASSERT_OK(Persist(old_));
    fs_.Reset();
    if (!unnamed) fs_.SetBefore([](FsCall& call) { return RefuseTmpfile(call); });
  }

  const std::string old_ = Content(kOldSize, 1);
  const std::string new_ = Content(kNewSize, 2);
};

INSTANTIATE_TEST_SUITE_P(All, PersistFaultsTest,
                         testing::Combine(testing::ValuesIn(kErrors), testing::Bool(),
                                          testing::Bool()));

TEST_P(PersistFaultsTest, OldOrNewAndNothingBesideIt) {
  const auto [expected, overwrite, unnamed] = GetParam();
  int failed = 0;
  for (int n = 1;; ++n) {
    SCOPED_TRACE(n);
    Prepare(overwrite, unnamed);
    fs_.FailNth(n, expected.error);
    const absl::Status status = Persist(new_);
    const std::vector<FsCall> calls = fs_.Calls();
    SCOPED_TRACE(Describe(calls));
    const std::string found = ReadFile(target_.path);
    if (status.ok()) {
      EXPECT_TRUE(found == new_);
    } else {
      ++failed;
      EXPECT_THAT(status, IsError(expected.code, expected.reason));
      EXPECT_THAT(status, Says("checkpoint " + target_.path + ": cannot "));
      // Only the sync of the folder, and what comes after it, may fail with the file in sight.
      bool after_publish = false;
      for (const FsCall& call : calls) {
        if (call.result == -expected.error) break;
        if (call.op == FsOp::kRename && call.target == target_.path) after_publish = true;
        if (call.op == FsOp::kLink && call.path == target_.path && call.result == 0) {
          after_publish = true;
        }
      }
      EXPECT_TRUE(found == (after_publish ? new_ : overwrite ? old_ : "<none>"));
    }
    EXPECT_EQ(dir_.List(), found == "<none>" ? std::vector<std::string>() : NamesOnly());

    fs_.Reset();
    ASSERT_OK(Persist(Content(3000, 3)));
    EXPECT_EQ(ReadFile(target_.path), Content(3000, 3));
    EXPECT_THAT(dir_.List(), ElementsAre("last.ckpt"));
    if (static_cast<int>(calls.size()) < n) break;  // every call has had its turn
  }
  EXPECT_GE(failed, 10) << "fewer calls than the protocol has steps";
}

TEST_P(PersistFaultsTest, ADiskThatIsFullHalfway) {
  const auto [expected, overwrite, unnamed] = GetParam();
  Prepare(overwrite, unnamed);
  fs_.FailNth(FsOp::kWrite, 2, expected.error);
  EXPECT_THAT(Persist(Content((16 << 20) + 4097, 2)), IsError(expected.code, expected.reason));
  EXPECT_TRUE(ReadFile(target_.path) == (overwrite ? old_ : "<none>"));
  EXPECT_EQ(dir_.List().size(), overwrite ? 1u : 0u);
}

// ---- Cancelling ------------------------------------------------------------------------------

class PersistCancelTest : public PersistFixture {
 protected:
  PersistCancelTest() : PersistFixture(TempDir::Place::kMemory) {}
};

TEST_F(PersistCancelTest, BeforeEachStepUpToThePublishing) {
  const std::string content = Content((32 << 20) + 5, 1);
  for (int n = 1;; ++n) {
    SCOPED_TRACE(n);
    PersistControl control;
    int made = 0;
    bool published = false;
    fs_.SetBefore([&](FsCall& call) -> std::optional<int64_t> {
      if (++made == n) control.cancelled = true;
      return std::nullopt;
    });
    fs_.SetAfter([&](const FsCall& call) {
      if (call.op == FsOp::kLink && made <= n) published = true;
    });
    const absl::Status status = Persist(content, 022, &control);
    fs_.Reset();
    if (status.ok()) {
      // Too late: the file is being published, or it is done.
      EXPECT_TRUE(published || made < n);
      EXPECT_THAT(dir_.List(), ElementsAre("last.ckpt"));
    } else {
      EXPECT_THAT(status, IsError(StatusCode::kCancelled, "CANCELLED_BY_REQUEST"));
      EXPECT_FALSE(published);
      EXPECT_THAT(dir_.List(), IsEmpty());
    }
    std::filesystem::remove(target_.path);
    if (made < n) break;
  }
}

// ---- Sealing ---------------------------------------------------------------------------------

class PersistSealTest : public PersistFixture {
 protected:
  absl::Status PersistSealed(
      std::function<absl::Status(const std::function<bool(uint64_t)>&)> seal) {
    const PageAligned image(content_);
    PersistSource source = image.Source();
    source.seal = std::move(seal);
    PersistControl control;
    return Persister(&fs_, {}, TempPrefix("test")).Persist(source, target_, 022, &control);
  }

  const std::string content_ = Content(40 << 20, 1);
};

TEST_F(PersistSealTest, AFailedSealIsTheErrorAndPublishesNothing) {
  const auto status = PersistSealed([](const std::function<bool(uint64_t)>& sealed) {
    sealed(18 << 20);
    return MakeError(StatusCode::kInternal, "INTERNAL", "backend: lost its mind");
  });
  EXPECT_THAT(status, IsError(StatusCode::kInternal, "INTERNAL"));
  EXPECT_THAT(status, Says("lost its mind"));
  EXPECT_THAT(dir_.List(), IsEmpty());
}

TEST_F(PersistSealTest, ASealThatEndsTooSoonPublishesNothing) {
  const auto status = PersistSealed([](const std::function<bool(uint64_t)>& sealed) {
    sealed((40 << 20) - 1);
    return absl::OkStatus();
  });
  EXPECT_THAT(status, IsError(StatusCode::kInternal, "INTERNAL"));
  EXPECT_THAT(dir_.List(), IsEmpty());
}

TEST_F(PersistSealTest, NothingIsWrittenBeforeItIsSealed) {
  std::atomic<uint64_t> sealed_bytes{0};
  uint64_t written = 0;
  fs_.SetBefore([&](FsCall& call) -> std::optional<int64_t> {
    if (call.op == FsOp::kWrite) {
      written += call.length;
      EXPECT_LE(written, sealed_bytes.load());
    }
    return std::nullopt;
  });
  ASSERT_OK(PersistSealed([&](const std::function<bool(uint64_t)>& sealed) {
    for (uint64_t at = 2 << 20; at <= 40 << 20; at += 2 << 20) {
      sealed_bytes = at;
      EXPECT_TRUE(sealed(at));
    }
    return absl::OkStatus();
  }));
}

TEST_F(PersistSealTest, WhatIsFinalLastIsWrittenLast) {
  PageAligned image(content_);
  PersistSource source = image.Source();
  source.late_bytes = 100;
  absl::Notification others_are_written;
  uint64_t written = 0;
  fs_.SetBefore([&](FsCall& call) -> std::optional<int64_t> {
    if (call.op != FsOp::kWrite) return std::nullopt;
    written += call.length;
    if (written == 16 << 20) others_are_written.Notify();
    return std::nullopt;
  });
  source.seal = [&](const std::function<bool(uint64_t)>& sealed) {
    EXPECT_TRUE(sealed(source.size - 1));
    EXPECT_TRUE(others_are_written.WaitForNotificationWithTimeout(absl::Seconds(30)));
    std::memset(image.data(), 'x', source.late_bytes);
    EXPECT_TRUE(sealed(source.size));
    return absl::OkStatus();
  };
  PersistControl control;
  ASSERT_OK(Persister(&fs_, {}, TempPrefix("test")).Persist(source, target_, 022, &control));
  EXPECT_EQ(control.written, source.size);
  EXPECT_EQ(ReadFile(target_.path), std::string(100, 'x') + content_.substr(100));
}

TEST_F(PersistSealTest, ASealIsStoppedWhenWritingHasFailed) {
  fs_.FailAll(FsOp::kWrite, ENOSPC);
  const auto status = PersistSealed([](const std::function<bool(uint64_t)>& sealed) {
    // Goes on for as long as it is let.
    while (sealed(16 << 20)) {
    }
    return MakeError(StatusCode::kCancelled, "CANCELLED_BY_REQUEST", "seal: was told to stop");
  });
  EXPECT_THAT(status, IsError(StatusCode::kResourceExhausted, "STORAGE_FULL"));
}

}  // namespace
}  // namespace ckptd
