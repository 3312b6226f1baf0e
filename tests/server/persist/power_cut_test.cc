// The power goes after each single call: a save that has returned OK is there, whole, whatever the
// power cut took; one that has not is there or the old checkpoint is; a removal leaves all or
// nothing. On a file system that forgets all that POSIX lets it forget.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/persist/persister.h"
#include "server/persist/target.h"
#include "tests/server/persist/persist_fixture.h"
#include "tests/server/testing/memory_file_system.h"

namespace ckptd {
namespace {

constexpr size_t kStates = 300;  // of each cut, at most
constexpr uint32_t kSeed = 20240607;
constexpr mode_t kMode = 0640;

// What may be at a path: "<none>", or a content.
using Allowed = std::set<std::string>;
constexpr char kNone[] = "<none>";

std::string Short(const std::string& content) {
  return absl::StrCat(content.size(), " bytes ", std::hash<std::string>{}(content));
}

class PowerCutTest : public testing::Test {
 protected:
  explicit PowerCutTest(const MemoryFileSystem::Options& options = {}, const Remains& remains = {})
      : memory_(options, remains) {}

  void SetUp() override {
    // So that even a small file is written by several calls.
    fs_.SetBefore([](FsCall& call) -> std::optional<int64_t> {
      if (call.op == FsOp::kWrite) call.length = std::min(call.length, size_t{4096});
      return std::nullopt;
    });
    fs_.SetAfter([this](const FsCall& call) {
      ++cuts_;
      CutThePower(call);
    });
  }

  // From now on, whenever the power goes, `path` may hold only that.
  void Allow(const std::string& path, const Allowed& allowed) { allowed_[path] = allowed; }

  // Compares all that a power cut may leave now with what is allowed.
  void CutThePower(const FsCall& after) {
    for (const Remains& remains : memory_.AfterPowerCut(kStates, kSeed)) {
      for (const auto& [path, allowed] : allowed_) {
        auto it = remains.find(path);
        const std::string found = it == remains.end() ? kNone : it->second.content;
        const bool right_mode = it == remains.end() || it->second.mode == kMode;
        if (allowed.count(found) == 1 && right_mode) continue;
        std::string all;
        for (const auto& [name, remnant] : remains) absl::StrAppend(&all, name, " ");
        ADD_FAILURE() << "the power goes after call " << cuts_ << ": " << Describe({after}) << path
                      << " has " << (it == remains.end() ? kNone : Short(found)) << " of mode "
                      << std::oct << (it == remains.end() ? 0 : it->second.mode)
                      << "; all that is there: " << all;
        return;
      }
    }
  }
  void CutThePower() { CutThePower(FsCall()); }

  // What is at a path while the power is there.
  std::string Now(const std::string& path) const {
    const Remains now = memory_.Now();
    auto it = now.find(path);
    return it == now.end() ? kNone : it->second.content;
  }

  absl::Status Save(const std::string& path, const std::string& content) {
    auto target = PrepareTarget(&fs_, roots_, path, 0777 & ~0750);
    if (!target.ok()) return target.status();
    const PageAligned image(content);
    PersistControl control;
    return Persister(&fs_, roots_, TempPrefix("test"))
        .Persist(image.Source(), *target, 0666 & ~kMode, &control);
  }
  absl::Status Remove(const std::string& path) {
    auto target = ResolveTarget(&fs_, roots_, path);
    return target.ok() ? RemovePath(&fs_, roots_, *target) : target.status();
  }

  // The save of `content` to `path`, where `old` is, with the power going all the time.
  void SaveOver(const std::string& path, const std::string& old, const std::string& content) {
    Allow(path, {old, content});
    ASSERT_OK(Save(path, content));
    Allow(path, {content});
    CutThePower();
  }
  void RemoveFrom(const std::string& path, const std::string& old) {
    Allow(path, {old, kNone});
    ASSERT_OK(Remove(path));
    Allow(path, {kNone});
    CutThePower();
  }

  const std::string a_ = Content(3 * 4096 + 17, 1);
  const std::string b_ = Content(2 * 4096 + 4095, 2);
  MemoryFileSystem memory_;
  FaultyFileSystem fs_{&memory_};
  AllowedRoots roots_;
  std::map<std::string, Allowed> allowed_;
  int cuts_ = 0;
};

// With and without unnamed files, and direct writing.
class PowerCutSaveTest : public PowerCutTest,
                         public testing::WithParamInterface<std::tuple<bool, bool>> {
 protected:
  PowerCutSaveTest()
      : PowerCutTest(MemoryFileSystem::Options{std::get<0>(GetParam()), std::get<1>(GetParam())}) {}
};

INSTANTIATE_TEST_SUITE_P(FileSystems, PowerCutSaveTest,
                         testing::Combine(testing::Bool(), testing::Bool()), [](const auto& with) {
                           return absl::StrCat(std::get<0>(with.param) ? "Unnamed" : "Named",
                                               std::get<1>(with.param) ? "Direct" : "Cached");
                         });

TEST_P(PowerCutSaveTest, ANewCheckpointThenOneOverIt) {
  ASSERT_NO_FATAL_FAILURE(SaveOver("/last.ckpt", kNone, a_));
  ASSERT_NO_FATAL_FAILURE(SaveOver("/last.ckpt", a_, b_));
  ASSERT_NO_FATAL_FAILURE(SaveOver("/last.ckpt", b_, a_));
  EXPECT_GT(cuts_, 30);
  EXPECT_EQ(memory_.OpenFiles(), 0u);
}

TEST_P(PowerCutSaveTest, InFoldersThatItMakes) {
  ASSERT_NO_FATAL_FAILURE(SaveOver("/runs/7/checkpoints/last.ckpt", kNone, a_));
  ASSERT_NO_FATAL_FAILURE(SaveOver("/runs/7/other/last.ckpt", kNone, b_));
}

// A trainer's loggers make folders and sync nothing; so does another save that is not done yet.
TEST_P(PowerCutSaveTest, InFoldersThatOthersHaveJustMade) {
  ASSERT_EQ(memory_.MakeDirectory("/runs", 0750), 0);
  ASSERT_EQ(memory_.MakeDirectory("/runs/7", 0750), 0);
  ASSERT_NO_FATAL_FAILURE(SaveOver("/runs/7/last.ckpt", kNone, a_));
}

TEST_P(PowerCutSaveTest, BeneathAnAllowedRoot) {
  ASSERT_EQ(memory_.MakeDirectory("/root", 0750), 0);
  const FileDescriptor top(&memory_, memory_.Open("/", O_RDONLY, 0));
  ASSERT_EQ(memory_.Sync(top.get()), 0);
  ASSERT_OK_AND_ASSIGN(roots_, AllowedRoots::Open(&memory_, {"/root"}));
  ASSERT_EQ(memory_.MakeDirectory("/root/a", 0750), 0);
  ASSERT_NO_FATAL_FAILURE(SaveOver("/root/a/b/last.ckpt", kNone, a_));
  ASSERT_NO_FATAL_FAILURE(SaveOver("/root/a/b/last.ckpt", a_, b_));
  ASSERT_NO_FATAL_FAILURE(RemoveFrom("/root/a/b/last.ckpt", b_));
}

TEST_P(PowerCutSaveTest, TwoFilesOneAfterTheOther) {
  ASSERT_NO_FATAL_FAILURE(SaveOver("/d/a.ckpt", kNone, a_));
  Allow("/d/b.ckpt", {kNone});
  ASSERT_NO_FATAL_FAILURE(SaveOver("/d/a.ckpt", a_, b_));
  ASSERT_NO_FATAL_FAILURE(SaveOver("/d/b.ckpt", kNone, a_));
  EXPECT_EQ(allowed_.size(), 2u);
}

// As ModelCheckpoint(save_top_k=1) does it: there is always one to go back to.
TEST_P(PowerCutSaveTest, ASaveThenTheRemovalOfTheOneBefore) {
  ASSERT_NO_FATAL_FAILURE(SaveOver("/d/1.ckpt", kNone, a_));
  ASSERT_NO_FATAL_FAILURE(SaveOver("/d/2.ckpt", kNone, b_));
  ASSERT_NO_FATAL_FAILURE(RemoveFrom("/d/1.ckpt", a_));
  ASSERT_NO_FATAL_FAILURE(SaveOver("/d/1.ckpt", kNone, b_));
  ASSERT_NO_FATAL_FAILURE(RemoveFrom("/d/1.ckpt", b_));
}

// Each call fails in its turn, and the power goes after each call.
TEST_P(PowerCutSaveTest, WhereCallsFailItIsTheOldOrTheNewOne) {
  const std::string path = "/d/last.ckpt";
  ASSERT_NO_FATAL_FAILURE(SaveOver(path, kNone, a_));
  for (int n = 1;; ++n) {
    SCOPED_TRACE(n);
    Allow(path, {a_, b_});
    const int before = cuts_;
    fs_.FailNth(n, EIO);
    const absl::Status status = Save(path, b_);
    const bool reached = cuts_ - before >= n;
    if (status.ok()) {
      Allow(path, {b_});
      CutThePower();
    }
    if (!reached) break;
    // Back to where it was.
    ASSERT_NO_FATAL_FAILURE(SaveOver(path, status.ok() ? b_ : Now(path), a_));
  }
}

// ---- Removals --------------------------------------------------------------------------------

// The files below a path, or nothing.
std::vector<std::string> Below(const Remains& remains, const std::string& path) {
  std::vector<std::string> names;
  for (const auto& [name, remnant] : remains) {
    if (absl::StartsWith(name, path + "/")) names.push_back(name + remnant.content);
  }
  return names;
}

class PowerCutRemoveTest : public PowerCutTest {};

// A checkpoint of many files goes as one.
TEST_F(PowerCutRemoveTest, AFolderIsThereWholeOrGone) {
  for (const char* file : {"/d/ckpt/a", "/d/ckpt/sub/b", "/d/ckpt/sub/c"}) {
    ASSERT_OK(Save(file, file));
  }
  const std::vector<std::string> whole = Below(memory_.Now(), "/d/ckpt");
  ASSERT_EQ(whole.size(), 4u);
  std::set<size_t> seen;
  const auto check = [&](bool may_be_there) {
    for (const Remains& remains : memory_.AfterPowerCut(kStates, kSeed)) {
      const auto below = Below(remains, "/d/ckpt");
      seen.insert(below.size());
      if (remains.count("/d/ckpt") == 0) continue;
      ASSERT_TRUE(may_be_there);
      ASSERT_EQ(below, whole);
    }
  };
  fs_.SetAfter([&](const FsCall& /*call*/) { check(true); });
  ASSERT_OK(Remove("/d/ckpt"));
  check(false);
  EXPECT_EQ(seen, (std::set<size_t>{0, 4}));
  EXPECT_TRUE(Below(memory_.Now(), "/d").empty());
}

// ---- Afterwards ------------------------------------------------------------------------------

// Whatever a power cut has left, the next save and the next removal work.
TEST(PowerCutRecoveryTest, TheNextSaveWorksOnWhatIsLeft) {
  const std::string old_content = Content(5000, 1);
  const std::string new_content = Content(9000, 2);
  const auto save = [](FileSystem* fs, const std::string& content) {
    auto target = PrepareTarget(fs, {}, "/d/last.ckpt", 022);
    EXPECT_OK(target);
    const PageAligned image(content);
    PersistControl control;
    EXPECT_OK(
        Persister(fs, {}, TempPrefix("test")).Persist(image.Source(), *target, 022, &control));
  };
  for (const bool unnamed : {true, false}) {
    MemoryFileSystem::Options options;
    options.unnamed_files = unnamed;
    MemoryFileSystem memory(options);
    FaultyFileSystem fs(&memory);
    save(&memory, old_content);
    std::vector<Remains> left;
    fs.SetAfter([&](const FsCall& /*call*/) {
      for (Remains& remains : memory.AfterPowerCut(10, kSeed)) left.push_back(std::move(remains));
    });
    save(&fs, new_content);
    ASSERT_GT(left.size(), 10u);
    for (const Remains& remains : left) {
      MemoryFileSystem again(options, remains);
      save(&again, new_content);
      EXPECT_EQ(again.Now()["/d/last.ckpt"].content, new_content);
      EXPECT_OK(RemovePath(&again, {}, Target{"/d", "/d/last.ckpt"}));
      EXPECT_EQ(again.Now().count("/d/last.ckpt"), 0u);
    }
  }
}

}  // namespace
}  // namespace ckptd
