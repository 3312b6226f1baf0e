// What a persist leaves where nothing fails, and what it does where the file system lacks
// something.

#include "server/persist/persister.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <mutex>

#include "tests/server/persist/persist_fixture.h"
#include "tests/server/testing/registering.h"

namespace ckptd {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::IsEmpty;

mode_t ModeOf(const std::string& path) {
  struct stat info = {};
  EXPECT_EQ(lstat(path.c_str(), &info), 0) << path;
  return info.st_mode & 07777;
}

struct Way {
  const char* name;
  TempDir::Place place;
  bool registered;
};

// On a disk with direct writing, of memory that is registered or not, and in a tmpfs.
class PersisterTest : public PersistFixture, public testing::WithParamInterface<Way> {
 protected:
  PersisterTest() : PersistFixture(GetParam().place) { registered_ = GetParam().registered; }
  void SetUp() override {
    const std::string refusal = WhyNoRegisteredMemory();
    if (registered_ && !refusal.empty()) GTEST_SKIP() << refusal;
  }
};

INSTANTIATE_TEST_SUITE_P(Ways, PersisterTest,
                         testing::Values(Way{"Disk", TempDir::Place::kDisk, false},
                                         Way{"DiskRegistered", TempDir::Place::kDisk, true},
                                         Way{"Memory", TempDir::Place::kMemory, false}),
                         [](const auto& way) { return way.param.name; });

TEST_P(PersisterTest, WritesExactlyTheBytes) {
  // Around a page and around the size of a piece.
  constexpr size_t kPiece = 16 << 20;
  for (const size_t size :
       {size_t{1}, size_t{4095}, size_t{4096}, size_t{4097}, kPiece - 1, kPiece, kPiece + 1}) {
    const std::string content = Content(size, 1);
    ASSERT_OK(Persist(content)) << size;
    EXPECT_TRUE(ReadFile(target_.path) == content) << size;
    EXPECT_EQ(std::filesystem::file_size(target_.path), size);
    EXPECT_THAT(dir_.List(), ElementsAre("last.ckpt"));
  }
}

TEST_P(PersisterTest, TellsItsProgress) {
  PersistControl control;
  std::vector<uint64_t> told;
  control.on_progress = [&] { told.push_back(control.written); };
  ASSERT_OK(Persist(Content(40 << 20, 1), 022, &control));
  EXPECT_THAT(told, ElementsAre(16 << 20, 32 << 20, 40 << 20));
}

TEST_P(PersisterTest, OverwritesWithoutTouchingTheOldFile) {
  ASSERT_OK(Persist(Content(5000, 1)));
  // Who has the old one open, or mapped, goes on reading it.
  const FileDescriptor old(posix_.get(), posix_->Open(target_.path, O_RDONLY, 0));
  ASSERT_OK(Persist(Content(9000, 2)));
  EXPECT_EQ(ReadFile(target_.path), Content(9000, 2));
  std::string still(5000, '\0');
  EXPECT_EQ(posix_->Read(old.get(), still.data(), still.size(), 0), 5000);
  EXPECT_EQ(still, Content(5000, 1));
  EXPECT_THAT(dir_.List(), ElementsAre("last.ckpt"));
}

TEST_P(PersisterTest, TheModeFollowsTheUmask) {
  for (const mode_t mask : {0u, 022u, 077u, 027u, 0777u}) {
    ASSERT_OK(Persist("x", mask));
    EXPECT_EQ(ModeOf(target_.path), 0666u & ~mask);
  }
}

TEST_P(PersisterTest, ReplacesASymlinkAndNotWhatItLeadsTo) {
  WriteFile(dir_ / "other", "kept");
  std::filesystem::create_symlink("other", target_.path);
  ASSERT_OK(Persist("new"));
  EXPECT_TRUE(std::filesystem::is_regular_file(std::filesystem::symlink_status(target_.path)));
  EXPECT_EQ(ReadFile(target_.path), "new");
  EXPECT_EQ(ReadFile(dir_ / "other"), "kept");
}

TEST_P(PersisterTest, LeaksNoDescriptors) {
  const size_t before = CountOpenFiles();
  ASSERT_OK(Persist("x"));
  ASSERT_OK(Persist("y"));
  fs_.FailNth(FsOp::kDataSync, 1, EIO);
  EXPECT_FALSE(Persist("z").ok());
  EXPECT_EQ(CountOpenFiles(), before);
}

// The folder is looked at after every single system call.
TEST_P(PersisterTest, NoOtherNameIsEverVisible) {
  std::vector<std::vector<std::string>> seen;
  std::vector<FsOp> ops;
  fs_.SetAfter([&](const FsCall& call) {
    ops.push_back(call.op);
    seen.push_back(dir_.List());
  });
  ASSERT_OK(Persist(Content(100000, 1)));
  for (size_t i = 0; i < seen.size(); ++i) {
    const bool published = std::find(ops.begin(), ops.begin() + static_cast<int64_t>(i) + 1,
                                     FsOp::kLink) != ops.begin() + static_cast<int64_t>(i) + 1;
    EXPECT_EQ(seen[i], published ? NamesOnly() : std::vector<std::string>()) << i;
  }

  seen.clear();
  ops.clear();
  ASSERT_OK(Persist(Content(200000, 2)));
  int with_dot_name = 0;
  for (size_t i = 0; i < seen.size(); ++i) {
    if (seen[i] == NamesOnly()) continue;
    ++with_dot_name;
    EXPECT_EQ(ops[i], FsOp::kLink) << "seen after something else than the link to the dot-name";
    ASSERT_EQ(seen[i].size(), 2u);
    EXPECT_TRUE(IsDotName(seen[i][0])) << seen[i][0];
    ASSERT_LT(i + 1, ops.size());
    EXPECT_EQ(ops[i + 1], FsOp::kRename) << "the dot-name stays longer than it must";
  }
  EXPECT_EQ(with_dot_name, 1);
}

// What makes a checkpoint durable is the order: data, then the name, then the folder.
TEST_P(PersisterTest, SyncsTheDataBeforeTheNameAndTheFolderAfterIt) {
  for (const bool overwrite : {false, true}) {
    fs_.Reset();
    ASSERT_OK(Persist(Content(20 << 20, 1)));
    const std::vector<FsCall> calls = fs_.Calls();
    SCOPED_TRACE(Describe(calls));
    auto last = [&](FsOp op) {
      int64_t index = -1;
      for (size_t i = 0; i < calls.size(); ++i) {
        if (calls[i].op == op && calls[i].result >= 0) index = static_cast<int64_t>(i);
      }
      return index;
    };
    auto first = [&](FsOp op) {
      auto it =
          std::find_if(calls.begin(), calls.end(), [&](const FsCall& c) { return c.op == op; });
      return it - calls.begin();
    };
    ASSERT_NE(last(FsOp::kDataSync), -1);
    ASSERT_NE(last(FsOp::kSync), -1);
    EXPECT_LT(last(FsOp::kWrite), first(FsOp::kDataSync));
    EXPECT_LT(last(FsOp::kTruncate), first(FsOp::kDataSync));
    EXPECT_LT(last(FsOp::kDataSync), first(FsOp::kLink));
    const int64_t published = last(overwrite ? FsOp::kRename : FsOp::kLink);
    EXPECT_LT(published, last(FsOp::kSync));
    EXPECT_EQ(calls[static_cast<size_t>(last(FsOp::kDataSync))].fd, calls[first(FsOp::kWrite)].fd);
    // The folder that was opened at first; those above it are synced before.
    EXPECT_EQ(calls[static_cast<size_t>(last(FsOp::kSync))].fd, calls[first(FsOp::kOpen)].result);
    EXPECT_EQ(calls[first(FsOp::kOpen)].path, dir_.path());
  }
}

// A checkpoint that is durable in a folder that is not would be lost all the same.
TEST_P(PersisterTest, SyncsTheFoldersAboveIt) {
  const std::string below = dir_ / "a/b";
  std::filesystem::create_directories(below);
  std::vector<ino_t> synced;
  fs_.SetAfter([&](const FsCall& call) {
    struct stat info = {};
    if (call.op == FsOp::kSync && fstat(call.fd, &info) == 0) synced.push_back(info.st_ino);
  });
  const PageAligned image("x");
  PersistControl control;
  ASSERT_OK(Persister(&fs_, {}, TempPrefix("test"))
                .Persist(image.Source(), Target{below, below + "/f"}, 022, &control));
  const auto inode = [](const std::string& path) {
    struct stat info = {};
    EXPECT_EQ(stat(path.c_str(), &info), 0);
    return info.st_ino;
  };
  ASSERT_GE(synced.size(), 3u);
  EXPECT_EQ(synced[0], inode(dir_ / "a"));
  EXPECT_EQ(synced[1], inode(dir_.path()));
  EXPECT_EQ(synced.back(), inode(below));
}

// ---- Giving way ------------------------------------------------------------------------------

// What is added to the niceness of whoever makes a call. Nothing is when it is done, and the caller
// of Persist keeps its own.
TEST_P(PersisterTest, GivesWayFromTheFifthPieceOn) {
  const int own = getpriority(PRIO_PROCESS, 0);
  const auto added = [own] { return getpriority(PRIO_PROCESS, 0) - own; };
  std::mutex mu;
  std::vector<int> writes;
  std::vector<int> others;
  fs_.SetBefore([&](FsCall& call) -> std::optional<int64_t> {
    const std::lock_guard<std::mutex> lock(mu);
    (call.op == FsOp::kWrite ? writes : others).push_back(added());
    return std::nullopt;
  });
  PersistControl control;
  control.niceness = 3;
  ASSERT_OK(Persist(Content((80 << 20) + 1, 1), 022, &control));
  EXPECT_THAT(writes, ElementsAre(0, 0, 0, 0, 3, 3));
  EXPECT_THAT(others, testing::Each(0));
  writes.clear();
  ASSERT_OK(Persist(Content(64 << 20, 1), 022, &control));
  EXPECT_THAT(writes, testing::Each(0)) << "there is no fifth piece";
  EXPECT_EQ(added(), 0);
}

TEST_P(PersisterTest, TheSealGivesWayWithTheWriter) {
  const int own = getpriority(PRIO_PROCESS, 0);
  PageAligned image(Content((80 << 20) + 1, 1));
  PersistSource source = image.Source();
  std::vector<int> added;
  source.seal = [&](const std::function<bool(uint64_t)>& sealed) {
    for (uint64_t bytes = 0; bytes < source.size;) {
      added.push_back(getpriority(PRIO_PROCESS, 0) - own);
      bytes = std::min<uint64_t>(bytes + (16 << 20), source.size);
      sealed(bytes);
    }
    return absl::OkStatus();
  };
  PersistControl control;
  control.niceness = 3;
  ASSERT_OK(Persister(&fs_, {}, TempPrefix("test")).Persist(source, target_, 022, &control));
  EXPECT_THAT(added, ElementsAre(0, 0, 0, 0, 3, 3));
}

// ---- Where the file system lacks something ---------------------------------------------------

// Of memory that is registered or not.
class LackingFileSystemTest : public PersistFixture, public testing::WithParamInterface<bool> {
 protected:
  LackingFileSystemTest() : PersistFixture(TempDir::Place::kMemory) { registered_ = GetParam(); }
  void SetUp() override {
    const std::string refusal = WhyNoRegisteredMemory();
    if (registered_ && !refusal.empty()) GTEST_SKIP() << refusal;
  }

  // Persists a new file and over it, and checks what is left.
  void PersistTwice() {
    for (const uint32_t seed : {1U, 2U}) {
      const std::string content = Content((40 << 20) + 17, seed);
      ASSERT_OK(Persist(content));
      EXPECT_TRUE(ReadFile(target_.path) == content);
      EXPECT_THAT(dir_.List(), ElementsAre("last.ckpt"));
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Memory, LackingFileSystemTest, testing::Bool());

TEST_P(LackingFileSystemTest, NoUnnamedFiles) {
  for (const int error : {EOPNOTSUPP, EISDIR, ENOENT}) {
    fs_.SetBefore([error](FsCall& call) -> std::optional<int64_t> {
      if (RefuseTmpfile(call).has_value()) return -error;
      return std::nullopt;
    });
    PersistTwice();
  }
}

TEST_P(LackingFileSystemTest, DirectWritingRefusedAtOpen) {
  fs_.SetBefore([](FsCall& call) -> std::optional<int64_t> {
    if (call.op == FsOp::kOpen && (call.flags & O_DIRECT) != 0) return -EINVAL;
    return std::nullopt;
  });
  PersistTwice();
}

TEST_P(LackingFileSystemTest, DirectWritingRefusedAtTheFirstWrite) {
  // Until the flag is taken from the descriptor.
  std::mutex mu;
  bool direct = true;
  fs_.SetBefore([&](FsCall& call) -> std::optional<int64_t> {
    const std::lock_guard<std::mutex> lock(mu);
    if (call.op == FsOp::kOpen) direct = (call.flags & O_DIRECT) != 0;
    if (call.op == FsOp::kSetFlags) direct = (call.flags & O_DIRECT) != 0;
    if (call.op == FsOp::kWrite && direct) return -EINVAL;
    return std::nullopt;
  });
  PersistTwice();
  EXPECT_EQ(fs_.Count(FsOp::kSetFlags), 2);
}

TEST_P(LackingFileSystemTest, DirectWritingRefusedAndTheFlagStays) {
  fs_.FailAll(FsOp::kSetFlags, EINVAL);
  fs_.FailAll(FsOp::kWrite, EINVAL);
  EXPECT_THAT(Persist("x"), IsError(StatusCode::kInternal, "STORAGE_ERROR"));
  EXPECT_THAT(dir_.List(), IsEmpty());
}

// Neither of both: Linux makes the file with its name before it finds that it cannot be written
// directly, and says EINVAL.
TEST_P(LackingFileSystemTest, NeitherUnnamedFilesNorDirectWriting) {
  fs_.SetBefore([](FsCall& call) -> std::optional<int64_t> {
    if (RefuseTmpfile(call).has_value()) return -EOPNOTSUPP;
    if (call.op == FsOp::kOpen && (call.flags & O_DIRECT) != 0) {
      WriteFile(call.path, "");
      return -EINVAL;
    }
    return std::nullopt;
  });
  PersistTwice();
}

TEST_P(LackingFileSystemTest, NoAllocation) {
  for (const int error : {EOPNOTSUPP, ENOSYS}) {
    fs_.Reset();
    fs_.FailAll(FsOp::kAllocate, error);
    PersistTwice();
  }
}

TEST_P(LackingFileSystemTest, ShortWrites) {
  // Of whole pages, of odd lengths, and of almost everything.
  for (const size_t at_most :
       {size_t{4096}, size_t{3} << 20, size_t{1000001}, (size_t{16} << 20) - 1}) {
    fs_.SetBefore([at_most](FsCall& call) -> std::optional<int64_t> {
      if (call.op == FsOp::kWrite) call.length = std::min(call.length, at_most);
      return std::nullopt;
    });
    PersistTwice();
  }
}

TEST_P(LackingFileSystemTest, AWriteOfNothingIsAnErrorAndNoLoop) {
  fs_.SetBefore([](FsCall& call) -> std::optional<int64_t> {
    if (call.op == FsOp::kWrite) return 0;
    return std::nullopt;
  });
  EXPECT_THAT(Persist("x"), IsError(StatusCode::kInternal, "STORAGE_ERROR"));
  EXPECT_THAT(dir_.List(), IsEmpty());
}

TEST_P(LackingFileSystemTest, AFileThatLostBytesIsNotPublished) {
  fs_.SetBefore([this](FsCall& call) -> std::optional<int64_t> {
    struct stat info = {};
    if (call.op == FsOp::kStat && posix_->Stat(call.fd, &info) == 0 && S_ISREG(info.st_mode)) {
      EXPECT_EQ(posix_->Truncate(call.fd, 5), 0);
    }
    return std::nullopt;
  });
  EXPECT_THAT(Persist(Content(100, 1)), IsError(StatusCode::kInternal, "STORAGE_ERROR"));
  EXPECT_THAT(dir_.List(), IsEmpty());
}

}  // namespace
}  // namespace ckptd
