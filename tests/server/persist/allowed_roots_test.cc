// Nothing happens outside of --allow-root: not by "..", not through symlinks, and not through a
// symlink that is put there between any two system calls.

#include "server/persist/allowed_roots.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "server/os/errors.h"
#include "server/persist/target.h"
#include "tests/server/persist/persist_fixture.h"

namespace ckptd {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::IsEmpty;

MATCHER(IsNotAllowed, "") {
  return testing::ExplainMatchResult(IsError(StatusCode::kPermissionDenied, "PATH_NOT_ALLOWED"),
                                     arg, result_listener);
}

// dir_/root is allowed. dir_/outside, with a tree of the same names, is not.
class AllowedRootsTest : public testing::Test {
 protected:
  AllowedRootsTest() {
    for (const char* folder : {"root/a/tree/sub", "outside/tree/sub"}) {
      std::filesystem::create_directories(dir_ / folder);
      WriteFile(dir_ / (std::string(folder) + "/x"), folder);
    }
    WriteFile(dir_ / "outside/last.ckpt", "secret");
    WriteFile(dir_ / "root/a/last.ckpt", "old");
    outside_ = Outside();
    auto roots = AllowedRoots::Open(&fs_, {root_});
    EXPECT_OK(roots);
    roots_ = *roots;
    fs_.Reset();
  }
  ~AllowedRootsTest() override { EXPECT_EQ(Outside(), outside_) << "something was done outside"; }

  // Everything that is outside, with its content.
  std::map<std::string, std::string> Outside() const {
    std::map<std::string, std::string> found;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(dir_ / "outside")) {
      found[entry.path()] = entry.is_regular_file() ? ReadFile(entry.path()) : "";
    }
    return found;
  }
  absl::Status Persist(const Target& target) {
    const PageAligned image(std::string("new"));
    PersistControl control;
    return Persister(&fs_, roots_, TempPrefix("test"))
        .Persist(image.Source(), target, 022, &control);
  }
  // Moves what is at `name` aside, and leaves a symlink to `to` in its place.
  void Swap(const std::string& name, const std::string& to) {
    if (std::filesystem::exists(name)) std::filesystem::rename(name, name + ".moved");
    std::filesystem::create_symlink(to, name);
  }
  void SwapBack(const std::string& name) {
    if (!std::filesystem::is_symlink(name)) return;
    std::filesystem::remove(name);
    if (std::filesystem::exists(name + ".moved")) std::filesystem::rename(name + ".moved", name);
  }
  // Calls `attempt` again and again, with `swap` before its first call, before its second, and so
  // on until there are no more.
  void SwapBeforeEachCall(const std::function<void()>& swap, const std::function<void()>& attempt) {
    for (int n = 1;; ++n) {
      SCOPED_TRACE(n);
      int calls = 0;
      fs_.Reset();
      fs_.SetBefore([&](FsCall& /*call*/) -> std::optional<int64_t> {
        if (++calls == n) swap();
        return std::nullopt;
      });
      attempt();
      fs_.SetBefore(nullptr);
      ASSERT_EQ(Outside(), outside_) << Describe(fs_.Calls());
      if (calls < n) break;
    }
  }

  const ScopedUmask umask_{0};
  const TempDir dir_;
  const std::string root_ = dir_ / "root";
  const std::unique_ptr<FileSystem> posix_ = NewPosixFileSystem();
  FaultyFileSystem fs_{posix_.get()};
  AllowedRoots roots_;
  std::map<std::string, std::string> outside_;
};

// ---- Which paths -----------------------------------------------------------------------------

TEST_F(AllowedRootsTest, RefusesWhatIsNotBeneath) {
  std::filesystem::create_directory(dir_ / "root2");
  std::filesystem::create_symlink("../outside", dir_ / "root/relative");
  std::filesystem::create_symlink(dir_ / "outside", dir_ / "root/absolute");
  for (const char* path : {"outside/f", "root/../outside/f", "root/a/../../outside/f", "root2/f",
                           "root/relative/f", "root/absolute/f", "root/relative/new/f", "f"}) {
    SCOPED_TRACE(path);
    EXPECT_THAT(ResolveTarget(&fs_, roots_, dir_ / path), IsNotAllowed());
    const auto target = PrepareTarget(&fs_, roots_, dir_ / path, 022);
    EXPECT_THAT(target, IsNotAllowed());
    EXPECT_THAT(target, Says("path " + (dir_ / path) + ": is not beneath " + root_));
    EXPECT_THAT(target, Says("--allow-root"));
  }
  EXPECT_THAT(ListDir(dir_ / "root2"), IsEmpty());
}

// A part that does not exist yet is made, and is then led out of by "..".
TEST_F(AllowedRootsTest, RefusesToMakeAWayOut) {
  for (const char* path : {"root/new/../../outside/f", "root/new/../../outside/deep/f"}) {
    EXPECT_THAT(PrepareTarget(&fs_, roots_, dir_ / path, 022), IsNotAllowed()) << path;
  }
  EXPECT_OK(PrepareTarget(&fs_, roots_, dir_ / "root/new/../other/f", 022));
}

TEST_F(AllowedRootsTest, AllowsSymlinksThatStayBeneath) {
  std::filesystem::create_directory(dir_ / "root/b");
  std::filesystem::create_symlink("../a", dir_ / "root/b/relative");
  std::filesystem::create_symlink(dir_ / "root/a", dir_ / "root/b/absolute");
  std::filesystem::create_symlink(root_, dir_ / "way-in");
  for (const char* path : {"root/b/relative/f", "root/b/absolute/f", "way-in/a/f", "root/a/f"}) {
    ASSERT_OK_AND_ASSIGN(const Target target, PrepareTarget(&fs_, roots_, dir_ / path, 022));
    EXPECT_EQ(target.path, dir_ / "root/a/f") << "the key of the one order";
    EXPECT_OK(Persist(target));
    EXPECT_OK(RemovePath(&fs_, roots_, target));
  }
}

TEST_F(AllowedRootsTest, KnowsSeveralRoots) {
  std::filesystem::create_directory_symlink("outside", dir_ / "link");
  ASSERT_OK_AND_ASSIGN(roots_, AllowedRoots::Open(&fs_, {root_, dir_ / "root/a", dir_ / "link"}));
  for (const char* path : {"root/f", "root/a/f", "root/a/tree/f", "outside/last.ckpt", "link/f"}) {
    EXPECT_OK(PrepareTarget(&fs_, roots_, dir_ / path, 022)) << path;
  }
  const auto target = PrepareTarget(&fs_, roots_, dir_ / "f", 022);
  EXPECT_THAT(target, IsNotAllowed());
  EXPECT_THAT(target, Says(root_ + ", "));
  EXPECT_THAT(target, Says(dir_ / "outside"));
  ASSERT_OK_AND_ASSIGN(roots_, AllowedRoots::Open(&fs_, {"/"}));
  EXPECT_OK(PrepareTarget(&fs_, roots_, dir_ / "root/f", 022));
}

TEST_F(AllowedRootsTest, IsNoLimitWithoutARoot) {
  ASSERT_OK_AND_ASSIGN(const AllowedRoots none, AllowedRoots::Open(&fs_, {}));
  EXPECT_OK(ResolveTarget(&fs_, none, dir_ / "outside/f"));
  EXPECT_EQ(none.Error("path x", "open it", -EXDEV).message(),
            OsError("path x", "open it", EXDEV).message());
}

TEST_F(AllowedRootsTest, SaysWhyARootCannotBeUsed) {
  WriteFile(dir_ / "file", "");
  EXPECT_THAT(AllowedRoots::Open(&fs_, {root_, dir_ / "none"}), Says(dir_ / "none"));
  EXPECT_THAT(AllowedRoots::Open(&fs_, {dir_ / "file"}),
              IsError(StatusCode::kFailedPrecondition, "NOT_A_DIRECTORY"));
  fs_.FailAll(FsOp::kOpenBeneath, ENOSYS);
  EXPECT_THAT(AllowedRoots::Open(&fs_, {root_}), Says("openat2"));
}

// What the roots are is settled at the start.
TEST_F(AllowedRootsTest, ARootThatIsReplacedLeadsNowhereElse) {
  ASSERT_OK_AND_ASSIGN(const Target target, PrepareTarget(&fs_, roots_, root_ + "/a/f", 022));
  Swap(root_, dir_ / "outside");
  EXPECT_OK(Persist(target));
  EXPECT_EQ(ReadFile(root_ + ".moved/a/f"), "new");
  EXPECT_THAT(PrepareTarget(&fs_, roots_, root_ + "/f", 022), IsNotAllowed());
}

// Folders above a target are synced, but none above its root.
TEST_F(AllowedRootsTest, DoesNotTouchWhatIsAboveARoot) {
  struct stat above = {};
  ASSERT_EQ(stat(dir_.path().c_str(), &above), 0);
  int opened = 0;
  fs_.SetAfter([&](const FsCall& call) {
    if (call.op != FsOp::kOpen && call.op != FsOp::kOpenBeneath) return;
    struct stat info = {};
    if (fstat(static_cast<int>(call.result), &info) != 0) return;
    ++opened;
    EXPECT_FALSE(info.st_dev == above.st_dev && info.st_ino == above.st_ino);
  });
  ASSERT_OK(Persist({root_ + "/a", root_ + "/a/f"}));
  EXPECT_EQ(opened, 3) << "the folder, the root, the file";
}

// ---- Symlinks that come in between -----------------------------------------------------------

TEST_F(AllowedRootsTest, MakingFoldersFollowsNoSymlinkOut) {
  SwapBeforeEachCall([&] { Swap(root_ + "/a", dir_ / "outside"); },
                     [&] {
                       const auto target =
                           PrepareTarget(&fs_, roots_, root_ + "/a/new/deep/f", 022);
                       if (!target.ok()) EXPECT_THAT(target, IsNotAllowed());
                       SwapBack(root_ + "/a");
                       std::filesystem::remove_all(root_ + "/a/new");
                     });
  // In place of one that was just made.
  SwapBeforeEachCall(
      [&] {
        if (std::filesystem::exists(root_ + "/a/new")) Swap(root_ + "/a/new", dir_ / "outside");
      },
      [&] {
        const auto target = PrepareTarget(&fs_, roots_, root_ + "/a/new/deep/f", 022);
        if (!target.ok()) EXPECT_THAT(target, IsNotAllowed());
        std::filesystem::remove_all(root_ + "/a/new");
        std::filesystem::remove_all(root_ + "/a/new.moved");
      });
}

TEST_F(AllowedRootsTest, PersistingFollowsNoSymlinkOut) {
  const Target target = {root_ + "/a", root_ + "/a/last.ckpt"};
  int refused = 0;
  int done = 0;
  SwapBeforeEachCall([&] { Swap(root_ + "/a", dir_ / "outside"); },
                     [&] {
                       const absl::Status status = Persist(target);
                       SwapBack(root_ + "/a");
                       EXPECT_EQ(ReadFile(target.path), status.ok() ? "new" : "old");
                       if (!status.ok()) EXPECT_THAT(status, IsNotAllowed());
                       ++(status.ok() ? done : refused);
                       WriteFile(target.path, "old");
                     });
  EXPECT_EQ(refused, 1) << "only before the folder is open";
  EXPECT_GT(done, 5);
}

TEST_F(AllowedRootsTest, ASymlinkThatComesInAndStaysBeneathIsFine) {
  Swap(root_ + "/a", "b");
  std::filesystem::create_directory(dir_ / "root/b");
  EXPECT_OK(Persist({root_ + "/a", root_ + "/a/f"}));
  EXPECT_THAT(ListDir(dir_ / "root/b"), ElementsAre("f"));
}

TEST_F(AllowedRootsTest, RemovingFollowsNoSymlinkOut) {
  const Target target = {root_ + "/a", root_ + "/a/tree"};
  const auto make = [&] {
    std::filesystem::create_directories(target.path + "/sub");
    WriteFile(target.path + "/sub/x", "x");
  };
  SwapBeforeEachCall([&] { Swap(root_ + "/a", dir_ / "outside"); },
                     [&] {
                       const absl::Status status = RemovePath(&fs_, roots_, target);
                       if (!status.ok()) EXPECT_THAT(status, IsNotAllowed());
                       SwapBack(root_ + "/a");
                       EXPECT_EQ(std::filesystem::exists(target.path), !status.ok());
                       make();
                     });
}

// Whether there are roots or not.
TEST_F(AllowedRootsTest, TheRecursionOfARemovalFollowsNoSymlink) {
  const Target target = {root_ + "/a", root_ + "/a/tree"};
  for (const AllowedRoots& roots : {roots_, AllowedRoots()}) {
    // Wherever the folder is by then.
    const auto swap = [&] {
      for (const std::string& name : ListDir(root_ + "/a")) {
        const std::string sub = root_ + "/a/" + name + "/sub";
        if (std::filesystem::is_directory(sub)) {
          std::filesystem::rename(sub, root_ + "/taken");
          std::filesystem::create_symlink(dir_ / "outside/tree/sub", sub);
        }
      }
    };
    SwapBeforeEachCall(swap, [&] {
      const absl::Status status = RemovePath(&fs_, roots, target);
      EXPECT_OK(RemovePath(posix_.get(), roots, target)) << status;
      EXPECT_THAT(ListDir(root_ + "/a"), ElementsAre("last.ckpt"));
      std::filesystem::remove_all(root_ + "/taken");
      std::filesystem::create_directories(target.path + "/sub");
      WriteFile(target.path + "/sub/x", "x");
    });
  }
}

TEST_F(AllowedRootsTest, ReadingFollowsNoSymlinkOut) {
  std::filesystem::create_symlink("a/last.ckpt", root_ + "/in");
  std::filesystem::create_symlink(dir_ / "outside/last.ckpt", root_ + "/out");
  EXPECT_TRUE(roots_.OpenFile(&fs_, root_ + "/in"));
  EXPECT_EQ(roots_.OpenFile(&fs_, root_ + "/out").get(), -EXDEV);
  EXPECT_EQ(roots_.OpenFile(&fs_, root_ + "/none").get(), -ENOENT);
  EXPECT_EQ(roots_.OpenFile(&fs_, dir_ / "outside/last.ckpt").get(), -EXDEV);
  SwapBeforeEachCall([&] { Swap(root_ + "/a", dir_ / "outside"); },
                     [&] {
                       const FileDescriptor file = roots_.OpenFile(&fs_, root_ + "/a/last.ckpt");
                       char read[3] = {};
                       if (file) {
                         EXPECT_EQ(posix_->Read(file.get(), read, 3, 0), 3);
                         EXPECT_EQ(std::string(read, 3), "old");
                       } else {
                         EXPECT_EQ(file.get(), -EXDEV);
                       }
                       SwapBack(root_ + "/a");
                     });
}

// ---- Hard links ------------------------------------------------------------------------------

TEST_F(AllowedRootsTest, AHardLinkIsReplacedAndNotWrittenThrough) {
  const std::string path = root_ + "/a/link.ckpt";
  std::filesystem::create_hard_link(dir_ / "outside/last.ckpt", path);
  ASSERT_OK(Persist({root_ + "/a", path}));
  EXPECT_EQ(ReadFile(path), "new");
  EXPECT_EQ(ReadFile(dir_ / "outside/last.ckpt"), "secret");
  EXPECT_EQ(std::filesystem::hard_link_count(dir_ / "outside/last.ckpt"), 1u);
}

}  // namespace
}  // namespace ckptd
