// Sources that lose a part while they are persisted: nothing of them is published.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>

#include "server/os/crash_marker.h"
#include "tests/server/persist/persist_fixture.h"

namespace ckptd {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::IsEmpty;

class LostMemoryTest : public PersistFixture {
 protected:
  absl::Status PersistSourceOf(const PersistSource& source) {
    PersistControl control;
    return Persister(&fs_, {}, TempPrefix("test")).Persist(source, target_, 022, &control);
  }
  // The old file is still there, whole and alone.
  void ExpectOld() {
    EXPECT_EQ(ReadFile(target_.path), "old");
    EXPECT_THAT(dir_.List(), ElementsAre("last.ckpt"));
  }
};

TEST_F(LostMemoryTest, WhatWasLostBeforeIsNotEvenBegun) {
  ASSERT_OK(Persist("old"));
  fs_.Reset();
  const PageAligned image(Content(100, 1));
  PersistSource source = image.Source();
  source.intact = [] { return false; };
  const absl::Status status = PersistSourceOf(source);
  EXPECT_THAT(status, IsError(StatusCode::kFailedPrecondition, "IMAGE_CHANGED"));
  EXPECT_THAT(status, Says(target_.path));
  EXPECT_THAT(fs_.Calls(), IsEmpty());
  ExpectOld();
}

TEST_F(LostMemoryTest, WhatIsLostDuringTheWritesIsNotPublished) {
  ASSERT_OK(Persist("old"));
  const PageAligned image(Content(40 << 20, 1));
  PersistSource source = image.Source();
  source.intact = [this] { return fs_.Count(FsOp::kWrite) < 2; };
  EXPECT_THAT(PersistSourceOf(source), IsError(StatusCode::kFailedPrecondition, "IMAGE_CHANGED"));
  ExpectOld();
}

// What the kernel answers for pages that are gone; the last of three pieces.
TEST_F(LostMemoryTest, WhatTheKernelCannotReadIsNotPublished) {
  ASSERT_OK(Persist("old"));
  fs_.Reset();
  fs_.FailNth(FsOp::kWrite, 3, EFAULT);
  EXPECT_THAT(Persist(Content(40 << 20, 1)),
              IsError(StatusCode::kFailedPrecondition, "IMAGE_CHANGED"));
  ExpectOld();
}

TEST_F(LostMemoryTest, WhatIsLostAfterTheLastWriteDoesNoHarm) {
  const std::string content = Content(40 << 20, 1);
  const PageAligned image(content);
  PersistSource source = image.Source();
  source.intact = [this] { return fs_.Count(FsOp::kTruncate) == 0; };
  EXPECT_OK(PersistSourceOf(source));
  EXPECT_TRUE(ReadFile(target_.path) == content);
}

// A crash of the seal, on its own thread, is one of the save.
TEST_F(LostMemoryTest, TheSealWorksOnWhatItsCallerDoes) {
  ASSERT_OK_AND_ASSIGN(const auto marker, CrashMarker::Open(&fs_, dir_ / "crashes"));
  const PageAligned image("x");
  PersistSource source = image.Source();
  CrashMarker::Work work;
  source.seal = [&](const std::function<bool(uint64_t)>& sealed) {
    work = CrashMarker::CurrentWork();
    sealed(1);
    return absl::OkStatus();
  };
  {
    const CrashMarker::Scope scope(marker.get(), 42);
    ASSERT_OK(PersistSourceOf(source));
    EXPECT_EQ(work.marker, marker.get());
    EXPECT_EQ(work.id, 42u);
  }
  ASSERT_OK(PersistSourceOf(source));
  EXPECT_EQ(work.marker, nullptr);
}

}  // namespace
}  // namespace ckptd
