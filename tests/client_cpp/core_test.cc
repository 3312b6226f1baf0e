#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cpp/core/checkpoint_file.h"
#include "client/cpp/core/copy.h"
#include "client/cpp/core/huge_page.h"
#include "client/cpp/core/image_map.h"
#include "client/cpp/core/process.h"
#include "client/cpp/core/save_ledger.h"
#include "client/cpp/core/stream_copy.h"
#include "tests/server/testing/status_matchers.h"
#include "tests/server/testing/temp_dir.h"

namespace ckptd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::Not;

TEST(Process, ReadsTheUmaskWithoutChangingIt) {
  const ScopedUmask umask_now(0027);
  EXPECT_EQ(CurrentUmask(), 0027u);
  EXPECT_EQ(umask(0027), 0027u);
}

TEST(Process, MakesIdsThatTheDaemonTakes) {
  EXPECT_THAT(JobId(""), MatchesRegex("[a-zA-Z0-9._-]+"));
  EXPECT_EQ(JobId("run 7/\xC3\xA9 of_me"), "run-7-of_me");
  EXPECT_EQ(JobId("none"), JobId(""));
  EXPECT_EQ(JobId(".."), "job");
  EXPECT_EQ(JobId(std::string(100, 'x')), std::string(63, 'x'));
  EXPECT_THAT(NewSaveId(7), MatchesRegex("[0-9]+-7-[0-9a-f]+"));
  EXPECT_NE(NewSaveId(7), NewSaveId(7));
  EXPECT_THAT(DefaultClientName(), MatchesRegex(".+:[0-9]+ .+"));
}

TEST(Copy, CopiesEveryByteWithAnyNumberOfThreads) {
  std::vector<size_t> sizes = {0, 1, 3, size_t{9} << 20, 17, (size_t{5} << 20) + 1, 0, 64};
  std::vector<uint8_t> from(std::accumulate(sizes.begin(), sizes.end(), size_t{0}));
  for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<uint8_t>(i * 31 + i / 251);
  for (int threads : {1, 2, 7}) {
    std::vector<uint8_t> to(from.size());
    std::vector<CopyItem> items;
    size_t at = 0;
    for (size_t size : sizes) {
      items.push_back({to.data() + at, from.data() + at, size});
      at += size;
    }
    CopyAll(items, threads);
    EXPECT_TRUE(to == from) << threads << " threads";
  }
}

TEST(StreamCopy, CopiesWhatItIsGivenAndNoByteBesideIt) {
  constexpr size_t kRoom = 4096;
  std::vector<uint8_t> from(kRoom);
  std::iota(from.begin(), from.end(), 1);
  for (size_t size : {0, 1, 63, 64, 1023, 1024, 1087, 1088, 2048, 2111}) {
    for (size_t to_offset : {0, 1, 8, 63}) {
      for (size_t from_offset : {0, 1, 40}) {
        std::vector<uint8_t> to(kRoom, 0xEE);
        std::vector<uint8_t> expected = to;
        std::memcpy(expected.data() + to_offset, from.data() + from_offset, size);
        ckptd_stream_copy(to.data() + to_offset, from.data() + from_offset, size);
        EXPECT_TRUE(to == expected) << size << " bytes from " << from_offset << " to " << to_offset;
      }
    }
  }
}

// An image as the daemon makes them.
class ImageMapTest : public testing::Test {
 protected:
  ImageRef Make(const std::string& name, size_t size_bytes, uint64_t id) {
    ImageRef image;
    image.path = dir_ / name;
    const UniqueFd fd(open(image.path.c_str(), O_RDWR | O_CREAT, 0600));
    EXPECT_EQ(ftruncate(fd.get(), static_cast<off_t>(size_bytes)), 0);
    struct stat info = {};
    fstat(fd.get(), &info);
    image.size_bytes = size_bytes;
    image.inode = info.st_ino;
    image.id = id;
    return image;
  }

  TempDir dir_{TempDir::Place::kMemory};
  ImageMap map_;
};

TEST_F(ImageMapTest, SharesMemoryWithTheFile) {
  const ImageRef image = Make("a", 10000, 1);
  ASSERT_OK_AND_ASSIGN(auto mapping, map_.Get(image));
  mapping->data()[9999] = 'x';
  EXPECT_EQ(ReadFile(image.path).back(), 'x');
}

TEST_F(ImageMapTest, KeepsTheMappingWhenTheLengthChanges) {
  ImageRef image = Make("a", 10000, 1);
  ASSERT_OK_AND_ASSIGN(auto first, map_.Get(image));
  image = Make("a", 5000, 1);
  ASSERT_OK_AND_ASSIGN(auto smaller, map_.Get(image));
  EXPECT_EQ(first.get(), smaller.get());
  const uint8_t* const before = first->data();
  image = Make("a", 50000, 1);
  ASSERT_OK_AND_ASSIGN(auto larger, map_.Get(image));
  EXPECT_EQ(first.get(), larger.get());
  EXPECT_EQ(larger->data(), before) << "it has room to grow";
  larger->data()[49999] = 'y';
  EXPECT_EQ(ReadFile(image.path).back(), 'y');
}

TEST_F(ImageMapTest, LiesAsHugePagesDoHoweverMuchItGrows) {
  for (const size_t size : {10000u, 7u << 20, 30u << 20}) {
    const ImageRef image = Make("a", size, 1);
    ASSERT_OK_AND_ASSIGN(auto mapping, map_.Get(image));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(mapping->data()) % kHugePage, 0u) << size;
    mapping->data()[size - 1] = 'z';
    EXPECT_EQ(ReadFile(image.path).back(), 'z');
  }
}

TEST_F(ImageMapTest, RefusesAnotherFile) {
  ImageRef image = Make("a", 100, 1);
  image.inode += 1;
  EXPECT_TRUE(absl::IsNotFound(map_.Get(image).status()));
  image = Make("b", 100, 2);
  image.size_bytes += 1;
  EXPECT_TRUE(absl::IsNotFound(map_.Get(image).status()));
  image.path = dir_ / "missing";
  EXPECT_THAT(map_.Get(image), Says("No such file"));
  image = Make("c", 100, 3);
  ASSERT_EQ(symlink(image.path.c_str(), (dir_ / "link").c_str()), 0);
  image.path = dir_ / "link";
  EXPECT_FALSE(map_.Get(image).ok());
}

TEST_F(ImageMapTest, LetsGoOfDeletedImages) {
  const ImageRef image = Make("a", 100, 1);
  const std::weak_ptr<ImageMapping> mapping = *map_.Get(image);
  EXPECT_FALSE(mapping.expired());
  ASSERT_EQ(unlink(image.path.c_str()), 0);
  ASSERT_OK(map_.Get(Make("b", 100, 2)));
  EXPECT_TRUE(mapping.expired());
}

TEST_F(ImageMapTest, IsNotInheritedOverFork) {
  const ImageRef image = Make("a", 4096, 1);
  ASSERT_OK_AND_ASSIGN(auto mapping, map_.Get(image));
  const pid_t child = fork();
  if (child == 0) {
    for (;;) pause();
  }
  const auto maps = [](pid_t pid) { return ReadFile(absl::StrCat("/proc/", pid, "/maps")); };
  EXPECT_THAT(maps(getpid()), HasSubstr(image.path));
  EXPECT_THAT(maps(child), Not(HasSubstr(image.path))) << "the daemon's memory is mapped in it";
  kill(child, SIGKILL);
  EXPECT_EQ(waitpid(child, nullptr, 0), child);
}

v1::Save Ended(const std::string& name, v1::Save::State state) {
  v1::Save save;
  save.set_name(name);
  save.set_path("/p");
  save.set_state(state);
  if (state == v1::Save::FAILED) {
    *save.mutable_error() =
        ToRpc(MakeError(absl::StatusCode::kInternal, "STORAGE_ERROR", "disk on fire"));
  }
  return save;
}

TEST(SaveLedger, TellsEachFailureOnce) {
  SaveLedger ledger;
  for (const char* name : {"ok", "bad", "gone", "told", "open"}) ledger.Accepted(name);
  ledger.Update(Ended("ok", v1::Save::SUCCEEDED));
  ledger.Update(Ended("bad", v1::Save::FAILED));
  ledger.Update(Ended("bad", v1::Save::FAILED));
  ledger.Update(Ended("open", v1::Save::PERSISTING));
  ledger.Update(Ended("stranger", v1::Save::FAILED));
  ledger.Lost("gone");
  ledger.Told("told");
  ledger.Update(Ended("told", v1::Save::FAILED));

  const std::vector<absl::Status> failures = ledger.TakeFailures();
  ASSERT_EQ(failures.size(), 2u);
  EXPECT_THAT(failures[0], IsError(absl::StatusCode::kInternal, "STORAGE_ERROR"));
  EXPECT_THAT(failures[0], Says("bad to /p: disk on fire"));
  EXPECT_THAT(failures[1], IsError(absl::StatusCode::kNotFound, "SAVE_NOT_FOUND"));
  EXPECT_TRUE(ledger.TakeFailures().empty());
  EXPECT_THAT(ledger.Open(), ElementsAre("open"));
}

TEST(CheckpointFile, ReadsInsideItsBoundsOnly) {
  const TempDir dir;
  WriteFile(dir / "f", "0123456789");
  ASSERT_OK_AND_ASSIGN(CheckpointFile file, CheckpointFile::Open(dir / "f"));
  EXPECT_EQ(file.size_bytes(), 10u);
  std::string bytes(4, ' ');
  ASSERT_OK(file.Read(6, bytes.data(), 4));
  EXPECT_EQ(bytes, "6789");
  EXPECT_TRUE(absl::IsOutOfRange(file.Read(7, bytes.data(), 4)));
  EXPECT_TRUE(absl::IsOutOfRange(file.Read(~uint64_t{0}, bytes.data(), 4)));
  EXPECT_THAT(CheckpointFile::Open(dir / "missing"), Says("Checkpoint file not found"));
  EXPECT_THAT(CheckpointFile::Open(dir.path()), Says("not a file"));
}

}  // namespace
}  // namespace ckptd
