#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "server/persist/persister.h"
#include "tests/server/persist/persist_fixture.h"
#include "tests/server/testing/faulty_file_system.h"
#include "tests/server/testing/status_matchers.h"
#include "tests/server/testing/temp_dir.h"

namespace ckptd {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::IsEmpty;

class RemovePathTest : public testing::Test {
 protected:
  absl::Status Remove(const std::string& name) {
    return RemovePath(&fs_, {}, Target{dir_.path(), dir_ / name});
  }
  void MakeTree() {
    std::filesystem::create_directories(dir_ / "tree/a/b");
    std::filesystem::create_directory(dir_ / "tree/empty");
    WriteFile(dir_ / "tree/x", "x");
    WriteFile(dir_ / "tree/a/y", "y");
    WriteFile(dir_ / "tree/a/b/z", "z");
    std::filesystem::create_directory_symlink(dir_ / "kept", dir_ / "tree/a/link");
  }

  TempDir dir_;
  const std::unique_ptr<FileSystem> posix_ = NewPosixFileSystem();
  FaultyFileSystem fs_{posix_.get()};
};

TEST_F(RemovePathTest, RemovesAFileAndSyncsItsFolder) {
  WriteFile(dir_ / "f", "x");
  WriteFile(dir_ / "g", "x");
  EXPECT_OK(Remove("f"));
  EXPECT_THAT(dir_.List(), ElementsAre("g"));
  const std::vector<FsCall> calls = fs_.Calls();
  SCOPED_TRACE(Describe(calls));
  size_t unlinked = calls.size();
  size_t synced = calls.size();
  for (size_t i = 0; i < calls.size(); ++i) {
    if (calls[i].op == FsOp::kUnlink) unlinked = i;
    if (calls[i].op == FsOp::kSync) synced = i;
  }
  ASSERT_LT(synced, calls.size()) << "a power cut would bring the file back";
  EXPECT_LT(unlinked, synced);
}

TEST_F(RemovePathTest, AMissingPathIsNoError) {
  EXPECT_OK(Remove("none"));
  EXPECT_OK(RemovePath(&fs_, {}, Target{dir_ / "no/folder", dir_ / "no/folder/f"}));
}

TEST_F(RemovePathTest, RemovesASymlinkItself) {
  std::filesystem::create_directory(dir_ / "folder");
  WriteFile(dir_ / "folder/f", "kept");
  std::filesystem::create_directory_symlink("folder", dir_ / "link");
  std::filesystem::create_symlink("nowhere", dir_ / "dangling");
  EXPECT_OK(Remove("link"));
  EXPECT_OK(Remove("dangling"));
  EXPECT_THAT(dir_.List(), ElementsAre("folder"));
  EXPECT_EQ(ReadFile(dir_ / "folder/f"), "kept");
}

TEST_F(RemovePathTest, RemovesATreeAndFollowsNoSymlinkInIt) {
  std::filesystem::create_directory(dir_ / "kept");
  WriteFile(dir_ / "kept/f", "kept");
  MakeTree();
  EXPECT_OK(Remove("tree"));
  EXPECT_THAT(dir_.List(), ElementsAre("kept"));
  EXPECT_EQ(ReadFile(dir_ / "kept/f"), "kept");
}

TEST_F(RemovePathTest, SaysWhatItCouldNotRemove) {
  MakeTree();
  fs_.SetBefore([&](FsCall& call) -> std::optional<int64_t> {
    if (call.op == FsOp::kUnlink && call.path.rfind("/a/y") != std::string::npos) return -EROFS;
    return std::nullopt;
  });
  const absl::Status status = Remove("tree");
  EXPECT_THAT(status, IsError(StatusCode::kFailedPrecondition, "READ_ONLY_STORAGE"));
  // Where it is by now.
  ASSERT_EQ(dir_.List().size(), 1u);
  EXPECT_TRUE(IsDotName(dir_.List().front()));
  EXPECT_THAT(status, Says("path " + (dir_ / dir_.List().front()) + "/a/y: cannot remove it"));
}

// A checkpoint of many files is there with all of them, or it is gone.
TEST_F(RemovePathTest, ATreeIsNeverSeenWithAPartOfItsFiles) {
  std::filesystem::create_directory(dir_ / "kept");
  MakeTree();
  std::set<std::vector<std::string>> seen;
  fs_.SetAfter([&](const FsCall& /*call*/) {
    std::vector<std::string> found;
    if (std::filesystem::exists(dir_ / "tree")) {
      for (const auto& entry : std::filesystem::recursive_directory_iterator(dir_ / "tree")) {
        found.push_back(entry.path());
      }
    }
    seen.insert(found);
  });
  EXPECT_OK(Remove("tree"));
  EXPECT_EQ(seen.size(), 2u) << "something between all and nothing was to be seen";
  EXPECT_THAT(dir_.List(), ElementsAre("kept"));
}

// As an overlay does it with a folder that comes from below.
TEST_F(RemovePathTest, ATreeThatCannotBeRenamedIsRemovedWhereItIs) {
  MakeTree();
  fs_.FailAll(FsOp::kRename, EXDEV);
  EXPECT_OK(Remove("tree"));
  EXPECT_THAT(dir_.List(), IsEmpty());
}

TEST_F(RemovePathTest, ATreeThatMayNotBeRenamedStaysAsItIs) {
  MakeTree();
  fs_.FailAll(FsOp::kRename, EACCES);
  EXPECT_THAT(Remove("tree"), IsError(StatusCode::kPermissionDenied, "PERMISSION_DENIED"));
  EXPECT_EQ(ReadFile(dir_ / "tree/a/b/z"), "z");
}

// Whatever fails: an error, and the next attempt removes the rest.
TEST_F(RemovePathTest, EveryFaultIsAnErrorAndCanBeTriedAgain) {
  for (int n = 1;; ++n) {
    SCOPED_TRACE(n);
    MakeTree();
    fs_.Reset();
    fs_.FailNth(n, EIO);
    const absl::Status status = Remove("tree");
    const std::vector<FsCall> calls = fs_.Calls();
    const bool reached = static_cast<int>(calls.size()) >= n;
    // The close of a folder that was only read tells nothing.
    if (reached && calls[static_cast<size_t>(n) - 1].op != FsOp::kClose) {
      EXPECT_THAT(status, IsError(StatusCode::kInternal, "STORAGE_ERROR")) << Describe(calls);
    } else {
      EXPECT_OK(status);
    }
    fs_.Reset();
    EXPECT_OK(Remove("tree"));
    EXPECT_THAT(dir_.List(), IsEmpty());
    if (!reached) break;
  }
}

TEST_F(RemovePathTest, AFileThatGoesMeanwhileIsNoError) {
  MakeTree();
  fs_.SetBefore([&](FsCall& call) -> std::optional<int64_t> {
    if (call.op == FsOp::kUnlink) posix_->Unlink(call.path);
    return std::nullopt;
  });
  EXPECT_OK(Remove("tree"));
  EXPECT_THAT(dir_.List(), IsEmpty());
}

TEST_F(RemovePathTest, AnAbsurdDepthIsRefusedAndNoCrash) {
  std::string path = dir_ / "tree";
  for (int i = 0; i < 150; ++i) path += "/d";
  std::filesystem::create_directories(path);
  EXPECT_THAT(Remove("tree"), IsError(StatusCode::kInvalidArgument, "INVALID_PATH"));
}

}  // namespace
}  // namespace ckptd
