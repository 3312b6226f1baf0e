// Every call of a restart fails in its turn, from the first look at an image to the end of what is
// taken over. What was accepted is never lost by that: a start that cannot have an image says so
// and leaves everything to the next one.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "server/persist/names.h"
#include "server/staging/pool_dir.h"
#include "tests/server/queue/faults.h"

namespace ckptd {
namespace {

using testing::AnyOf;
using testing::ElementsAre;

class RestartFaultsTest : public FaultsTest {
 protected:
  // What a daemon leaves that died over two saves to a path, a removal and a third save, and had
  // one in quarantine.
  void SetUp() override {
    FaultsTest::SetUp();
    Start(Options());
    Jam();
    ASSERT_NO_FATAL_FAILURE(Save("a", "f", "first"));
    ASSERT_NO_FATAL_FAILURE(Save("b", "f", "second"));
    ASSERT_OK(Remove("old", /*wait=*/false));
    ASSERT_NO_FATAL_FAILURE(Save("c", "g", "third"));
    ASSERT_NO_FATAL_FAILURE(Save("kept", "h", "fourth"));
    StopJammed();
    const uint64_t kept = journal_->Read()->saves.back().number;
    Jam();
    Restart(Options(), {kept, kept, kept});
    ASSERT_TRUE(Get("kept").image_kept());
    leftover_ = TempPrefix(journal_->id()) + "01234567";
    StopJammed();
    StopAll();
    Copy(state_.path(), left_ / "state");
    Copy(shm_.path(), left_ / "shm");
  }

  static void Copy(const std::string& from, const std::string& to) {
    std::filesystem::create_directories(to);
    for (const std::string& name : ListDir(to)) std::filesystem::remove_all(to + "/" + name);
    std::filesystem::copy(from, to, std::filesystem::copy_options::recursive);
  }

  // As it was after SetUp.
  void Leave(bool journal) {
    StopAll();
    for (const std::string& name : disk_.List()) std::filesystem::remove_all(disk_ / name);
    for (const std::string& name : state_.List()) std::filesystem::remove_all(state_ / name);
    WriteFile(disk_ / "f", "older");
    WriteFile(disk_ / "old", "old");
    WriteFile(disk_ / leftover_, "half of it");
    Copy(left_ / "shm", shm_.path());
    if (journal) Copy(left_ / "state", state_.path());
  }

  // Makes `start` once more where the failed call kept it from its end.
  void StartTwice(const std::function<absl::Status()>& start) {
    const absl::Status started = start();
    if (started.ok()) return;
    ExpectFault(started);
    StopAll();
    ASSERT_OK(start());
  }

  void ExpectEnded() {
    bool all = true;
    for (const char* id : {"a", "b", "c"}) {
      const v1::Save save = Get(id);
      if (save.state() == v1::Save::SUCCEEDED) continue;
      all = false;
      EXPECT_FALSE(GetParam().may_pass) << id << ": " << save.error().message();
      EXPECT_EQ(save.state(), v1::Save::FAILED) << id;
      ExpectFault(ErrorOf(save));
    }
    ASSERT_OK_AND_ASSIGN(const auto flushed, Flush("jobs/j"));
    if (GetParam().may_pass || (all && flushed.failed_removals().empty())) {
      EXPECT_TRUE(flushed.failed_removals().empty());
      EXPECT_EQ(ReadFile(disk_ / "f"), "second");
      EXPECT_EQ(ReadFile(disk_ / "g"), "third");
      // The last leftover goes when nobody waits any more.
      EXPECT_TRUE(Eventually([&] { return disk_.List() == std::vector<std::string>{"f", "g"}; }))
          << testing::PrintToString(disk_.List());
    }
    EXPECT_THAT(ReadFile(disk_ / "f"), AnyOf("older", "first", "second"));
    EXPECT_THAT(ReadFile(disk_ / "g"), AnyOf("<none>", "third"));
  }

  // Its bytes can still be had, and then its memory is free.
  void Export(const std::string& id, const std::string& content) {
    EXPECT_EQ(Get(id).state(), v1::Save::FAILED);
    EXPECT_TRUE(Get(id).image_kept());
    v1::ExportSaveRequest request;
    request.set_name(Name(id));
    request.set_path(exports_ / id);
    auto exported = queue_->ExportSave(request);
    if (!exported.ok()) {
      ExpectFault(exported.status());
      exported = queue_->ExportSave(request);
    }
    EXPECT_OK(exported);
    EXPECT_EQ(ReadFile(exports_ / id), content);
    EXPECT_FALSE(Get(id).image_kept());
  }

  TempDir left_{TempDir::Place::kMemory};
  TempDir exports_{TempDir::Place::kMemory};
  std::string leftover_;
};

INSTANTIATE_TEST_SUITE_P(All, RestartFaultsTest, testing::ValuesIn(kFaults), NameOfFault);

TEST_P(RestartFaultsTest, NothingThatWasAcceptedIsLost) {
  ForEachCall(80, [&](int n) {
    Leave(/*journal=*/true);
    FailNth(n);
    StartTwice([&] { return TryRestart(Options()); });
    if (!HasFatalFailure()) FinishAll();
    if (!HasFatalFailure()) ExpectEnded();
    if (!HasFatalFailure()) Export("kept", "fourth");
    std::vector<FsCall> calls = fs_.Calls();
    if (!HasFatalFailure()) ExpectNothingLeft();
    return calls;
  });
}

TEST_P(RestartFaultsTest, NothingIsLostWithTheJournal) {
  ForEachCall(40, [&](int n) {
    keep_images_ = true;
    Leave(/*journal=*/false);
    FailNth(n);
    StartTwice([&]() -> absl::Status {
      absl::Status status = TryRestart(Options());
      const auto images = ListImages(&fs_, shm_.path());
      if (status.ok()) status = images.status();
      return status.ok() ? queue_->RestoreOrphans(*images) : status;
    });
    if (!HasFatalFailure()) {
      Export("a", "first");
      Export("b", "second");
      Export("c", "third");
      Export("kept", "fourth");
    }
    std::vector<FsCall> calls = fs_.Calls();
    EXPECT_THAT(disk_.List(), ElementsAre(leftover_, "f", "old"));
    if (!HasFatalFailure()) ExpectNothingLeft();
    return calls;
  });
}

}  // namespace
}  // namespace ckptd
