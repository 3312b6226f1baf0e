#include "server/plugin_host/publish.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "tests/server/testing/status_matchers.h"
#include "tests/server/testing/temp_dir.h"

namespace ckptd {
namespace {

namespace fs = std::filesystem;

class PublishTest : public testing::Test {
 protected:
  static std::string Read(const std::string& path) {
    std::ostringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
  }
  std::vector<std::string> Listing() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(dir_.path())) {
      names.push_back(entry.path().filename());
    }
    return names;
  }
  static absl::Status Publish(
      const std::string& path, const std::string& text,
      const WriteProgress& progress = [](uint64_t) { return true; }) {
    const ckptd_bytes pieces[] = {{text.data(), 2}, {text.data() + 2, text.size() - 2}};
    return PublishFile(path, pieces, 2, progress);
  }

  TempDir dir_;
  const std::string path_ = dir_.path() + "/x";
};

TEST_F(PublishTest, ReplacesAFileAndLeavesNothingBesideIt) {
  EXPECT_OK(Publish(path_, "old file"));
  EXPECT_OK(Publish(path_, "new file"));
  EXPECT_EQ(Read(path_), "new file");
  EXPECT_OK(Publish(dir_.path() + "/deep/er/y", "y file"));
  EXPECT_THAT(Listing(), testing::UnorderedElementsAre("x", "deep"));
}

TEST_F(PublishTest, ACancelledFileLeavesTheOldOne) {
  EXPECT_OK(Publish(path_, "old file"));
  EXPECT_THAT(Publish(path_, "new file", [](uint64_t) { return false; }),
              IsError(absl::StatusCode::kCancelled, "CANCELLED_BY_REQUEST"));
  EXPECT_EQ(Read(path_), "old file");
  EXPECT_THAT(Listing(), testing::ElementsAre("x"));
}

TEST_F(PublishTest, ReplacesAFolderWhole) {
  for (const std::string name : {"first", "second"}) {
    ASSERT_OK_AND_ASSIGN(HiddenFolder hidden, MakeHiddenFolder(path_));
    std::vector<HiddenFolder> made;
    made.push_back(std::move(hidden));
    const std::string& folder = made[0].path;
    const ckptd_bytes piece = {name.data(), name.size()};
    EXPECT_OK(WriteFileIn(folder + "/" + name, &piece, 1, [](uint64_t) { return true; }));
    EXPECT_OK(PublishFolder(made, folder, path_));
    EXPECT_EQ(Read(path_ + "/" + name), name);
    EXPECT_THAT(Listing(), testing::ElementsAre("x"));
  }
  EXPECT_FALSE(fs::exists(path_ + "/first"));
  EXPECT_OK(RemoveDurably(path_));
  EXPECT_OK(RemoveDurably(path_));
  EXPECT_THAT(Listing(), testing::IsEmpty());
}

TEST_F(PublishTest, ReplacesAFolderOfManyFiles) {
  ASSERT_OK_AND_ASSIGN(HiddenFolder hidden, MakeHiddenFolder(path_));
  std::vector<HiddenFolder> made;
  made.push_back(std::move(hidden));
  for (int i = 0; i < 200; ++i) {
    EXPECT_OK(WriteFileIn(made[0].path + "/" + std::to_string(i), nullptr, 0,
                          [](uint64_t) { return true; }));
  }
  EXPECT_OK(PublishFolder(made, made[0].path, path_));
  EXPECT_EQ(std::distance(fs::directory_iterator(path_), fs::directory_iterator()), 200);
}

TEST_F(PublishTest, PublishesOnlyWhatTheCallHasMade) {
  fs::create_directory(dir_.path() + "/other");
  EXPECT_THAT(PublishFolder({}, dir_.path() + "/other", path_),
              IsError(absl::StatusCode::kInvalidArgument, "INVALID_PATH"));
  EXPECT_FALSE(fs::exists(path_));
}

TEST_F(PublishTest, LeavesAFolderThatIsBeingFilled) {
  ASSERT_OK_AND_ASSIGN(const HiddenFolder hidden, MakeHiddenFolder(path_));
  EXPECT_OK(Publish(path_, "file"));
  EXPECT_TRUE(fs::exists(hidden.path));
}

TEST_F(PublishTest, TakesAwayWhatADeadProcessHasLeft) {
  fs::create_directories(dir_.path() + "/.ckptd-plugin-0123456789abcdef/in");
  std::ofstream(dir_.path() + "/.ckptd-plugin-fedcba9876543210") << "half";
  EXPECT_OK(Publish(path_, "file"));
  EXPECT_THAT(Listing(), testing::ElementsAre("x"));
}

}  // namespace
}  // namespace ckptd
