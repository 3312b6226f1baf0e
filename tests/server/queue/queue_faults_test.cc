// Every call on the way of a checkpoint fails in its turn, from BeginSave to the removal: the error
// is the right one, the path has the old checkpoint or the new one, whole, whatever may work later
// does, and nothing is left of what did not.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "tests/server/queue/faults.h"

namespace ckptd {
namespace {

using testing::AnyOf;

class QueueFaultsTest : public FaultsTest {
 protected:
  // What is at the path, as long as nothing has removed it.
  void SaveOne() {
    v1::BeginSaveRequest request = Request("s", disk_ / kFile, new_.size());
    if (const auto begun = Begin(request); !begun.ok()) {
      ExpectFault(begun.status());
      EXPECT_EQ(ReadFile(disk_ / kFile), old_);
      ASSERT_OK(Begin(request));
    }
    ASSERT_OK(queue_->WriteSave(Name("s"), 0, new_));
    ASSERT_OK(queue_->CommitSave(Name("s")));
    FinishAll();
    const v1::Save save = Get("s");
    if (save.state() == v1::Save::SUCCEEDED) {
      EXPECT_EQ(ReadFile(disk_ / kFile), new_);
      return;
    }
    EXPECT_FALSE(GetParam().may_pass) << save.error().message();
    EXPECT_EQ(save.state(), v1::Save::FAILED);
    ExpectFault(ErrorOf(save));
    EXPECT_THAT(ReadFile(disk_ / kFile), AnyOf(old_, new_));
  }

  void LoadOne() {
    const std::string there = ReadFile(disk_ / kFile);
    auto load = Load(kFile);
    if (!load.ok() && there != "<none>") {
      ExpectFault(load.status());
      load = Load(kFile);
    }
    if (there == "<none>") {
      EXPECT_EQ(ReasonOf(load.status()), "CHECKPOINT_NOT_FOUND");
      return;
    }
    ASSERT_OK(load);
    auto content = queue_->ReadLoad(load->load_id(), 0, 2 * new_.size());
    if (!content.ok()) {
      ExpectFault(content.status());
      content = queue_->ReadLoad(load->load_id(), 0, 2 * new_.size());
    }
    ASSERT_OK(content);
    EXPECT_EQ(*content, there);
    queue_->EndLoad(load->load_id());
  }

  void RemoveOne() {
    const std::string there = ReadFile(disk_ / kFile);
    if (const absl::Status removed = Remove(kFile, /*wait=*/false); !removed.ok()) {
      ExpectFault(removed);
      EXPECT_EQ(ReadFile(disk_ / kFile), there);
      ASSERT_OK(Remove(kFile, /*wait=*/false));
    }
    FinishAll();
    ASSERT_OK_AND_ASSIGN(const auto flushed, Flush("jobs/j"));
    if (flushed.failed_removals().empty()) {
      EXPECT_EQ(ReadFile(disk_ / kFile), "<none>");
      return;
    }
    EXPECT_FALSE(GetParam().may_pass);
    ExpectFault(FromRpc(flushed.failed_removals(0).error()));
    EXPECT_THAT(ReadFile(disk_ / kFile), AnyOf(there, "<none>"));
  }

  void SaveTheNext() {
    fs_.Reset();
    ASSERT_NO_FATAL_FAILURE(Save("next", kFile, old_));
    EXPECT_EQ(WaitForEnd("next").state(), v1::Save::SUCCEEDED);
    EXPECT_EQ(ReadFile(disk_ / kFile), old_);
    EXPECT_EQ(ListDir(disk_ / "d/e"), std::vector<std::string>{"f"});
  }

  static constexpr const char* kFile = "d/e/f";
  std::string old_;
  const std::string new_ = std::string(9000, 'n');
};

INSTANTIATE_TEST_SUITE_P(All, QueueFaultsTest, testing::ValuesIn(kFaults), NameOfFault);

TEST_P(QueueFaultsTest, FromBeginSaveToTheRemoval) {
  for (const bool overwrite : {false, true}) {
    SCOPED_TRACE(overwrite ? "an old checkpoint is there" : "not even the folder is there");
    ForEachCall(50, [&](int n) {
      Start(Options());
      std::filesystem::remove_all(disk_ / "d");
      old_ = overwrite ? "old" : "<none>";
      if (overwrite) std::filesystem::create_directories(disk_ / "d/e");
      if (overwrite) WriteFile(disk_ / kFile, old_);
      FailNth(n);
      SaveOne();
      if (!HasFatalFailure()) LoadOne();
      if (!HasFatalFailure()) RemoveOne();
      std::vector<FsCall> calls = fs_.Calls();
      if (!HasFatalFailure()) SaveTheNext();
      if (!HasFatalFailure()) ExpectNothingLeft();
      return calls;
    });
  }
}

}  // namespace
}  // namespace ckptd
