// What the file system in memory may forget, and what it may not: the tests that cut the power are
// worth as much as this.

#include "tests/server/testing/memory_file_system.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <functional>
#include <set>
#include <string>

#include "tests/server/testing/temp_dir.h"

namespace ckptd {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::Not;
using testing::UnorderedElementsAre;

class MemoryFileSystemTest : public testing::Test {
 protected:
  // Makes or opens a file and writes to its front.
  FileDescriptor Write(const std::string& path, const std::string& content) {
    FileDescriptor file(&fs_, fs_.Open(path, O_CREAT | O_WRONLY, 0640));
    EXPECT_EQ(fs_.Write(file.get(), content.data(), content.size(), 0),
              static_cast<ssize_t>(content.size()));
    return file;
  }
  void Sync(const std::string& path) {
    const FileDescriptor file(&fs_, fs_.Open(path, O_RDONLY, 0));
    EXPECT_EQ(fs_.Sync(file.get()), 0);
  }
  // What may be at `path` after a power cut.
  std::set<std::string> After(const std::string& path) const {
    std::set<std::string> found;
    for (const Remains& remains : fs_.AfterPowerCut(1000, 1)) {
      auto it = remains.find(path);
      found.insert(it == remains.end() ? "<none>" : it->second.content);
    }
    return found;
  }

  MemoryFileSystem fs_;
};

TEST_F(MemoryFileSystemTest, ForgetsWhatWasNotSynced) {
  Write("/f", "abc");
  EXPECT_THAT(After("/f"),
              UnorderedElementsAre("<none>", "", "ab", "abc", std::string("\0\0\0", 3)));
}

TEST_F(MemoryFileSystemTest, DataAndNameAreSyncedEachByItself) {
  const FileDescriptor file = Write("/f", "abc");
  ASSERT_EQ(fs_.DataSync(file.get()), 0);
  EXPECT_THAT(After("/f"), UnorderedElementsAre("<none>", "abc"));
  Sync("/");
  EXPECT_THAT(After("/f"), ElementsAre("abc"));
  Write("/f", "ABCDE");
  const auto after = After("/f");
  EXPECT_THAT(after, Contains("abc"));
  EXPECT_THAT(after, Contains("ABCDE"));
  EXPECT_THAT(after, Contains(std::string("abc\0\0", 5)));
  EXPECT_THAT(after, Not(Contains("<none>")));
}

TEST_F(MemoryFileSystemTest, NamesReachTheDiskInAnyOrder) {
  for (const char* path : {"/a", "/b"}) {
    const FileDescriptor file = Write(path, path);
    ASSERT_EQ(fs_.Sync(file.get()), 0);
  }
  Sync("/");
  ASSERT_EQ(fs_.Rename("/a", "/b"), 0);
  // Both names may be there, or, where only the old name's end was written, just the old file.
  std::set<std::string> states;
  for (const Remains& remains : fs_.AfterPowerCut(100, 1)) {
    std::string state;
    for (const auto& [path, remnant] : remains) state += path + "=" + remnant.content + " ";
    states.insert(state);
  }
  EXPECT_THAT(states, UnorderedElementsAre("/a=/a /b=/b ", "/a=/a /b=/a ", "/b=/b ", "/b=/a "));
}

TEST_F(MemoryFileSystemTest, AFolderIsThereWhenTheOneAboveItIsSynced) {
  ASSERT_EQ(fs_.MakeDirectory("/d", 0755), 0);
  const FileDescriptor file = Write("/d/f", "abc");
  ASSERT_EQ(fs_.Sync(file.get()), 0);
  Sync("/d");
  EXPECT_THAT(After("/d/f"), UnorderedElementsAre("<none>", "abc"));
  Sync("/");
  EXPECT_THAT(After("/d/f"), ElementsAre("abc"));
}

TEST_F(MemoryFileSystemTest, AFileOfTwoNamesHasOneFate) {
  const FileDescriptor file(&fs_, fs_.Open("/", O_TMPFILE | O_WRONLY, 0644));
  ASSERT_EQ(fs_.Write(file.get(), "abc", 3, 0), 3);
  ASSERT_EQ(fs_.Link(file.get(), "/a"), 0);
  EXPECT_EQ(fs_.Link(file.get(), "/a"), -EEXIST);
  ASSERT_EQ(fs_.Link(file.get(), "/b"), 0);
  int both = 0;
  for (Remains& remains : fs_.AfterPowerCut(1000, 1)) {
    if (remains.size() < 2) continue;
    ++both;
    EXPECT_EQ(remains["/a"], remains["/b"]);
  }
  EXPECT_GT(both, 2);
}

TEST_F(MemoryFileSystemTest, OfTooManyStatesItGivesSomeBySeed) {
  for (int i = 0; i < 20; ++i) Write("/f" + std::to_string(i), "abc");
  const auto some = fs_.AfterPowerCut(50, 1);
  EXPECT_LE(some.size(), 50u);
  EXPECT_GT(some.size(), 20u);
  EXPECT_EQ(some[0], Remains()) << "the oldest";
  EXPECT_EQ(some[1], fs_.Now()) << "the newest";
  EXPECT_EQ(fs_.AfterPowerCut(50, 1), some);
  EXPECT_NE(fs_.AfterPowerCut(50, 2), some);
}

// It answers as the kernel does.
TEST_F(MemoryFileSystemTest, AnswersLikeARealOne) {
  const TempDir dir;
  const auto posix = NewPosixFileSystem();
  const auto both = [&](const std::function<int64_t(FileSystem*, const std::string&)>& call) {
    EXPECT_EQ(call(&fs_, ""), call(posix.get(), dir.path()));
  };
  const auto make = [](int flags) {
    return [flags](FileSystem* fs, const std::string& root) {
      const FileDescriptor file(fs, fs->Open(root + "/f", flags, 0600));
      return file ? 0 : file.get();
    };
  };
  using Path = const std::string&;
  both(make(O_RDONLY));
  both(make(O_CREAT | O_EXCL | O_WRONLY));
  both(make(O_CREAT | O_EXCL | O_WRONLY));
  both(make(O_RDONLY | O_DIRECTORY));
  both([](FileSystem* fs, Path root) { return fs->MakeDirectory(root + "/d/e", 0700); });
  both([](FileSystem* fs, Path root) { return fs->MakeDirectory(root + "/d", 0700); });
  both([](FileSystem* fs, Path root) { return fs->MakeDirectory(root + "/d", 0700); });
  both([](FileSystem* fs, Path root) { return fs->MakeDirectory(root + "/f/d", 0700); });
  both([](FileSystem* fs, Path root) { return fs->Rename(root + "/none", root + "/f"); });
  both([](FileSystem* fs, Path root) { return fs->Rename(root + "/f", root + "/d"); });
  both([](FileSystem* fs, Path root) { return fs->Rename(root + "/d", root + "/f"); });
  both([](FileSystem* fs, Path root) { return fs->Rename(root + "/f", root + "/d/f"); });
  both([](FileSystem* fs, Path root) { return fs->RemoveDirectory(root + "/d"); });
  both([](FileSystem* fs, Path root) { return fs->RemoveDirectory(root + "/d/f"); });
  both([](FileSystem* fs, Path root) { return fs->Unlink(root + "/d"); });
  both([](FileSystem* fs, Path root) { return fs->Unlink(root + "/d/f"); });
  both([](FileSystem* fs, Path root) { return fs->Unlink(root + "/d/f"); });
  both([](FileSystem* fs, Path root) { return fs->RemoveDirectory(root + "/d"); });
  both([](FileSystem* fs, Path root) {
    std::string real;
    return fs->RealPath(root + "/d", &real);
  });
}

}  // namespace
}  // namespace ckptd
