// The example, as its host process would run it: what it writes it reads, whole or not at all.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "proto/status/error_info.h"
#include "server/backend/plugin_table.h"
#include "server/plugin_host/probe.h"
#include "tests/server/testing/local_call.h"
#include "tests/server/testing/status_matchers.h"
#include "tests/server/testing/temp_dir.h"

namespace ckptd {
namespace {

namespace fs = std::filesystem;

class ExamplePluginTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_OK_AND_ASSIGN(table_, LoadPlugin(CKPTD_EXAMPLE_PLUGIN)); }

  CheckpointSpec Spec() const {
    CheckpointSpec spec;
    spec.tensors = {{"layers.0.weight", "float32", {2, 3}, 24},
                    {"scalar", "int64", {}, 8},
                    {"empty", "float64", {0, 4}, 0},
                    {"gr\xc3\xb6\xc3\x9f"
                     "e " +
                         std::string(200, 'n'),
                     "bool",
                     {5},
                     5}};
    return spec;
  }
  ckptd_code Save(LocalCall* call, const CheckpointSpec& spec, char fill) {
    SpecInC in_c(spec);
    std::vector<uint64_t> offsets;
    uint64_t at = 0;
    for (const auto& tensor : spec.tensors)
      offsets.push_back(std::exchange(at, at + tensor.size_bytes));
    const std::string bytes(at, fill);
    in_c.SetData(reinterpret_cast<const uint8_t*>(bytes.data()), offsets);
    return table_.save(PluginHost(), call, path_.c_str(), in_c.get());
  }
  void ExpectHas(const CheckpointSpec& spec, char fill) {
    LocalCall call;
    ASSERT_EQ(table_.load(PluginHost(), &call, path_.c_str(), 1), CKPTD_OK) << call.error();
    ASSERT_EQ(call.loaded.tensors.size(), spec.tensors.size());
    for (size_t i = 0; i < spec.tensors.size(); ++i) {
      EXPECT_EQ(call.loaded.tensors[i].name, spec.tensors[i].name);
      EXPECT_EQ(call.loaded.tensors[i].dtype, spec.tensors[i].dtype);
      EXPECT_EQ(call.loaded.tensors[i].shape, spec.tensors[i].shape);
      EXPECT_EQ(call.memory[i], std::string(spec.tensors[i].size_bytes, fill));
    }
    EXPECT_EQ(std::distance(fs::directory_iterator(dir_.path()), fs::directory_iterator()), 1);
  }

  TempDir dir_;
  const std::string path_ = dir_.path() + "/checkpoint";
  ckptd_backend table_ = {};
};

TEST_F(ExamplePluginTest, ReadsWhatItHasWrittenAndRemovesIt) {
  for (const CheckpointSpec& spec : {CheckpointSpec(), Spec()}) {
    LocalCall call;
    ASSERT_EQ(Save(&call, spec, 'a'), CKPTD_OK) << call.error();
    ExpectHas(spec, 'a');
  }
  LocalCall call;
  EXPECT_EQ(table_.remove(PluginHost(), &call, path_.c_str()), CKPTD_OK);
  EXPECT_EQ(table_.remove(PluginHost(), &call, path_.c_str()), CKPTD_OK);
  EXPECT_EQ(table_.load(PluginHost(), &call, path_.c_str(), 1), CKPTD_NOT_FOUND);
  EXPECT_TRUE(fs::is_empty(dir_.path()));
}

TEST_F(ExamplePluginTest, LeavesTheOldOneWhereverItIsCancelled) {
  LocalCall first;
  ASSERT_EQ(Save(&first, Spec(), 'a'), CKPTD_OK) << first.error();
  bool done = false;
  for (uint64_t after = 1; !done; after += 40) {
    {
      LocalCall call(after);
      const ckptd_code code = Save(&call, Spec(), 'b');
      done = code == CKPTD_OK;
      if (!done) EXPECT_EQ(code, CKPTD_CANCELLED) << call.error();
    }
    ExpectHas(Spec(), done ? 'b' : 'a');
  }
}

TEST_F(ExamplePluginTest, RefusesByNameWhatNumpyCannotHold) {
  const auto refused = [this](const CheckpointSpec& spec) {
    LocalCall call;
    EXPECT_EQ(Save(&call, spec, 'a'), CKPTD_INVALID_ARGUMENT);
    return call.error();
  };
  CheckpointSpec spec = Spec();
  spec.tensors[0].dtype = "bfloat16";
  EXPECT_THAT(refused(spec), testing::HasSubstr("layers.0.weight"));
  spec = Spec();
  spec.options = {{"ckptd.values", "{}"}};
  EXPECT_THAT(refused(spec), testing::HasSubstr("ckptd.values"));
  EXPECT_TRUE(fs::is_empty(dir_.path()));
}

}  // namespace
}  // namespace ckptd
