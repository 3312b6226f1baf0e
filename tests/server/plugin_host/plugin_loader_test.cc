#include "server/backend/plugin_loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "plugins/safetensors/safetensors_plugin.h"
#include "tests/server/testing/status_matchers.h"
#include "tests/server/testing/temp_dir.h"

namespace ckptd {
namespace {

namespace fs = std::filesystem;

class PluginLoaderTest : public testing::Test {
 protected:
  std::string Put(const std::string& from, const std::string& name) {
    const std::string to = dir_.path() + "/" + name;
    fs::copy_file(from, to);
    fs::permissions(to, fs::perms(0755));
    return to;
  }
  LoadedPlugins Find(const std::vector<std::string>& taken = {}) {
    return FindPlugins(dir_.path(), CKPTD_PROGRAM, NamedTensorsPlugin(), config_, taken);
  }
  void ExpectRefused(const std::string& why, const std::vector<std::string>& taken = {}) {
    const LoadedPlugins found = Find(taken);
    ASSERT_EQ(found.refused.size(), 1u) << why;
    EXPECT_THAT(found.refused[0].error,
                IsError(absl::StatusCode::kFailedPrecondition, "PLUGIN_REFUSED"));
    EXPECT_THAT(found.refused[0].error, Says(why));
  }

  TempDir dir_;
  BackendConfig config_;
};

TEST_F(PluginLoaderTest, FindsAPluginAndSaysHowItIsHosted) {
  const std::string file = Put(CKPTD_EXAMPLE_PLUGIN, "npy.so");
  std::ofstream(dir_.path() + "/README") << "no plugin";
  const LoadedPlugins found = Find();
  EXPECT_TRUE(found.refused.empty());
  ASSERT_EQ(found.backends.size(), 1u);
  const Backend& npy = *found.backends[0];
  EXPECT_EQ(npy.name(), "npy");
  EXPECT_EQ(npy.version(), "1.0");
  EXPECT_EQ(npy.file(), file);
  EXPECT_TRUE(npy.hosted());
  EXPECT_FALSE(npy.takes_object());
  ASSERT_NE(npy.host(), nullptr);
  EXPECT_THAT(npy.host()->argv, testing::ElementsAre(CKPTD_PROGRAM, "--plugin-host", file));
  EXPECT_EQ(npy.host()->payload, "");
  CheckpointSpec spec;
  spec.tensors = {{"w", "complex128", {2}, 32}};
  EXPECT_OK(npy.MakePlan(spec).status());
}

TEST_F(PluginLoaderTest, SettingsAreTakenOrRefusedAtOnce) {
  Put(CKPTD_CONFIGURED_PLUGIN, "configured.so");
  config_["configured"] = {{"level", "9"}};
  const LoadedPlugins found = Find();
  ASSERT_EQ(found.backends.size(), 1u) << found.refused.at(0).error;
  EXPECT_EQ(found.backends[0]->host()->payload, std::string("level\0009\0", 8));
  EXPECT_THAT(found.backends[0]->capabilities(), testing::ElementsAre("configure", "hosted"));
  config_["configured"] = {{"level", "10"}};
  ExpectRefused("level: must be below 10; give another one");
  ExpectRefused("configured.so: backend configured: does not take its settings");
  fs::remove(dir_.path() + "/configured.so");
  Put(CKPTD_EXAMPLE_PLUGIN, "npy.so");
  config_["npy"] = {{"level", "9"}};
  ExpectRefused("takes no settings; remove [backend.npy]");
}

TEST_F(PluginLoaderTest, NoFolderIsNoPlugins) {
  const LoadedPlugins found =
      FindPlugins(dir_.path() + "/none", CKPTD_PROGRAM, NamedTensorsPlugin(), {}, {});
  EXPECT_TRUE(found.backends.empty() && found.refused.empty());
}

TEST_F(PluginLoaderTest, RefusesWithASentence) {
  std::ofstream(dir_.path() + "/text.so") << "no library";
  ExpectRefused("cannot be loaded");
  fs::remove(dir_.path() + "/text.so");
  const std::string crash = Put(CKPTD_CRASHING_PLUGIN, "crash.so");
  ExpectRefused("crashed while it was loaded: signal 6");
  fs::remove(crash);
  const std::string file = Put(CKPTD_EXAMPLE_PLUGIN, "npy.so");
  ExpectRefused("is named 'npy', as another backend is already", {"npy"});
  fs::permissions(file, fs::perms(0775));
  ExpectRefused("can be written by others");
  fs::permissions(file, fs::perms(0755));
  Put(CKPTD_EXAMPLE_PLUGIN, "npy2.so");
  ExpectRefused("npy2.so: is named 'npy'");
  fs::permissions(dir_.path(), fs::perms(0777));
  ExpectRefused("can be written by others");
}

}  // namespace
}  // namespace ckptd
