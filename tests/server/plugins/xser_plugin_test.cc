// The backend "xla-xser": that the old checkpoint or the new one is there, whole, wherever it dies.
#include "plugins/xser/xser_plugin.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "client/cpp/core/verify.h"
#include "server/backend/plugin_table.h"
#include "tests/server/testing/local_call.h"
#include "tests/server/testing/status_matchers.h"
#include "tests/server/testing/temp_dir.h"

namespace ckptd {
namespace {

namespace fs = std::filesystem;

class XserPluginTest : public testing::Test {
 protected:
  // The checkpoint called `name`: its object has that text, its tensors are full of it.
  static CheckpointSpec Spec(char name) {
    const std::string first = std::to_string(name * 100);
    const std::string second = std::to_string(name * 100 + 1);
    CheckpointSpec spec;
    spec.tensors = {{"object", "uint8", {24}, 24},
                    {"data/0", "uint8", {4}, 4},
                    {"tensor_" + first + ".pt", "float32", {2, 8}, 64},
                    {"tensor_" + second + ".pt", "uint16", {0}, 0}};
    spec.options = {{"metadata.xser.kinds", "tp"}};
    return spec;
  }
  void MustSave(char name) {
    LocalCall call;
    ASSERT_EQ(Save(&call, name), CKPTD_OK) << call.error();
  }
  ckptd_code Save(LocalCall* call, char name) { return Save(call, Spec(name), name); }
  ckptd_code Save(LocalCall* call, const CheckpointSpec& spec, char name) {
    SpecInC in_c(spec);
    std::vector<uint64_t> offsets;
    uint64_t at = 0;
    for (const auto& tensor : spec.tensors) {
      offsets.push_back(std::exchange(at, at + tensor.size_bytes));
    }
    const std::string bytes(at, name);
    in_c.SetData(reinterpret_cast<const uint8_t*>(bytes.data()), offsets);
    return XserPlugin()->save(PluginHost(), call, path_.c_str(), in_c.get());
  }
  // Does it in a process of its own, which dies at its `steps`-th step. False where it had fewer.
  template <typename Function>
  static bool DiesAt(int steps, Function&& function) {
    const pid_t pid = fork();
    if (pid == 0) {
      LocalCall call;
      call.on_step = [&steps] {
        if (--steps == 0) std::raise(SIGKILL);
      };
      _exit(function(&call) == CKPTD_OK ? 0 : 1);
    }
    int status = 0;
    EXPECT_EQ(waitpid(pid, &status, 0), pid);
    if (!WIFSIGNALED(status)) EXPECT_EQ(WEXITSTATUS(status), 0);
    return WIFSIGNALED(status);
  }
  static std::string Read(const std::string& file) {
    std::ifstream in(file, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  static void ExpectWhole(const std::string& file) {
    ASSERT_OK_AND_ASSIGN(const CheckpointFile opened, CheckpointFile::Open(file));
    EXPECT_OK(VerifyCheckpoint(opened).status());
  }
  // The name of the checkpoint that is there, whole; 0 where there is none.
  char Found() const {
    const std::string object = Read(path_);
    if (object.empty()) return 0;
    ExpectWhole(path_);
    for (const char name : {'a', 'b', 'c'}) {
      if (object.find(std::string(24, name)) == std::string::npos) continue;
      for (const auto& tensor : Spec(name).tensors) {
        if (tensor.name.rfind("tensor_", 0) != 0) continue;
        const std::string file = Folder() + "/" + tensor.name;
        ExpectWhole(file);
        EXPECT_NE(Read(file).find(std::string(tensor.size_bytes, name)), std::string::npos);
      }
      return name;
    }
    ADD_FAILURE() << "the object is none that was saved";
    return 0;
  }
  std::string Folder() const { return path_ + ".tensors"; }
  void ExpectNothingBeside(char name) const {
    std::set<std::string> names;
    for (const auto& entry : fs::recursive_directory_iterator(dir_.path())) {
      names.insert(entry.path().filename().string());
    }
    const CheckpointSpec spec = Spec(name);
    EXPECT_THAT(names, testing::UnorderedElementsAre("last.ckpt", "last.ckpt.tensors",
                                                     spec.tensors[2].name, spec.tensors[3].name));
  }

  TempDir dir_;
  const std::string path_ = dir_.path() + "/last.ckpt";
};

TEST_F(XserPluginTest, SavesAnewOverAnotherAndOverItself) {
  for (const char name : {'a', 'b', 'b'}) {
    MustSave(name);
    EXPECT_EQ(Found(), name);
  }
  ExpectNothingBeside('b');
  LocalCall call;
  EXPECT_EQ(XserPlugin()->remove(PluginHost(), &call, path_.c_str()), CKPTD_OK);
  EXPECT_EQ(XserPlugin()->remove(PluginHost(), &call, path_.c_str()), CKPTD_OK);
  EXPECT_TRUE(fs::is_empty(dir_.path()));
}

TEST_F(XserPluginTest, WhereverItDiesTheOldOneOrTheNewOneIsThere) {
  std::string found;
  for (int steps = 1;; ++steps) {
    MustSave('a');
    const bool died = DiesAt(steps, [&](LocalCall* call) { return Save(call, 'b'); });
    found.push_back(Found());
    MustSave('c');
    EXPECT_EQ(Found(), 'c');
    ExpectNothingBeside('c');
    if (!died) break;
  }
  // First the old one only, then the new one only.
  EXPECT_THAT(found, testing::MatchesRegex("a+bb+"));
  EXPECT_GE(found.size(), 12U);
}

TEST_F(XserPluginTest, WhatIsDoneAgainAfterADeathKeepsTheCheckpoint) {
  for (int steps = 1;; ++steps) {
    MustSave('b');
    if (!DiesAt(steps, [&](LocalCall* call) { return Save(call, 'b'); })) break;
    EXPECT_EQ(Found(), 'b');
  }
}

TEST_F(XserPluginTest, ARemovalThatDiesLeavesAllOrNoFileAtThePath) {
  std::string found;
  for (int steps = 1;; ++steps) {
    MustSave('a');
    const bool died = DiesAt(steps, [&](LocalCall* call) {
      return XserPlugin()->remove(PluginHost(), call, path_.c_str());
    });
    found.push_back(Found() == 'a' ? 'a' : '-');
    if (!died) break;
  }
  EXPECT_THAT(found, testing::MatchesRegex("a+--+"));
}

TEST_F(XserPluginTest, WhereItIsCancelledTheOldOneIsAllThereIs) {
  MustSave('a');
  for (int steps = 1;; ++steps) {
    int left = steps;
    ckptd_code code = CKPTD_OK;
    {
      LocalCall call;
      call.on_step = [&] { call.cancelled = --left <= 0; };
      code = Save(&call, 'b');
    }
    if (code == CKPTD_OK) break;
    EXPECT_EQ(code, CKPTD_CANCELLED);
    EXPECT_EQ(Found(), 'a');
    ExpectNothingBeside('a');
  }
  EXPECT_EQ(Found(), 'b');
}

TEST_F(XserPluginTest, RefusesWhatItDoesNotKnow) {
  const auto error = [this](const CheckpointSpec& spec) {
    std::string why;
    {
      LocalCall call;
      EXPECT_EQ(Save(&call, spec, 'a'), CKPTD_INVALID_ARGUMENT);
      why = call.error();
    }
    EXPECT_TRUE(fs::is_empty(dir_.path()));
    return why;
  };
  CheckpointSpec spec = Spec('a');
  spec.tensors[2].name = "tensor_../../x.pt";
  EXPECT_THAT(error(spec), testing::HasSubstr("tensor_../../x.pt"));
  spec = Spec('a');
  spec.tensors[2].dtype = "float1024";
  EXPECT_THAT(error(spec), testing::HasSubstr("float1024"));
  spec = Spec('a');
  spec.options[0].first = "ckptd.tree";
  EXPECT_THAT(error(spec), testing::HasSubstr("ckptd.tree"));
  spec = Spec('a');
  spec.options[0].second = "t";
  EXPECT_THAT(error(spec), testing::HasSubstr("one letter"));
  spec = Spec('a');
  spec.tensors.erase(spec.tensors.begin());
  EXPECT_THAT(error(spec), testing::HasSubstr("data/0"));
}

TEST_F(XserPluginTest, DoesNotReplaceAFileWhereItsFolderGoes) {
  std::ofstream(Folder()) << "mine";
  LocalCall call;
  EXPECT_EQ(Save(&call, 'a'), CKPTD_FAILED_PRECONDITION);
  EXPECT_THAT(call.error(), testing::HasSubstr(Folder()));
  EXPECT_EQ(Read(Folder()), "mine");
}

}  // namespace
}  // namespace ckptd
