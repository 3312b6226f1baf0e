#include "server/backend/backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

#include "plugins/torch/torch_plugin.h"
#include "server/backend/plugin_table.h"
#include "tests/server/testing/fake_backend.h"
#include "tests/server/testing/status_matchers.h"

extern "C" const ckptd_backend* ckptd_plugin_in_c(void);

namespace ckptd {
namespace {

using absl::StatusCode;

CheckpointSpec Spec(const std::string& trap = "") {
  CheckpointSpec spec;
  spec.object_bytes = 10;
  spec.tensors = {{"0", "uint8", {4}, 4}, {"1", "uint8", {0}, 0}, {"2", "uint8", {3, 2}, 6}};
  if (!trap.empty()) spec.options = {{"trap", trap}};
  return spec;
}

TEST(BackendTest, PlansAndSeals) {
  ASSERT_OK_AND_ASSIGN(auto backend, Backend::Create(FakePlugin()));
  ASSERT_OK_AND_ASSIGN(auto plan, backend->MakePlan(Spec()));
  EXPECT_EQ(plan->file_bytes(), 20u);
  EXPECT_EQ(plan->object_offset(), 0u);
  EXPECT_THAT(plan->tensor_offsets(), testing::ElementsAre(10, 14, 14));

  std::vector<uint8_t> image(20);
  std::vector<uint64_t> told;
  EXPECT_OK(backend->Seal(*plan, image.data(), [&](uint64_t bytes) {
    told.push_back(bytes);
    return true;
  }));
  EXPECT_THAT(told, testing::ElementsAre(20));
}

TEST(BackendTest, PassesOnWhatThePluginSays) {
  ASSERT_OK_AND_ASSIGN(auto backend, Backend::Create(FakePlugin()));
  EXPECT_THAT(backend->MakePlan(Spec("refuse")), IsError(StatusCode::kOutOfRange, "INTERNAL"));
  EXPECT_THAT(backend->MakePlan(Spec("refuse")), Says("refuses, as it was told"));

  ASSERT_OK_AND_ASSIGN(auto plan, backend->MakePlan(Spec("seal")));
  std::vector<uint8_t> image(20);
  EXPECT_THAT(backend->Seal(*plan, image.data(), [](uint64_t) { return true; }),
              IsError(StatusCode::kInternal, "INTERNAL"));

  ASSERT_OK_AND_ASSIGN(auto torch, Backend::Create(TorchPlugin()));
  EXPECT_THAT(torch->MakePlan(Spec("x")), IsError(StatusCode::kInvalidArgument, "INVALID_TENSOR"));
}

// The plugin would see "1" twice, or an option that nobody gave.
TEST(BackendTest, RefusesWhatCWouldCutShort) {
  ASSERT_OK_AND_ASSIGN(auto backend, Backend::Create(TorchPlugin()));
  const auto refused = IsError(StatusCode::kInvalidArgument, "INVALID_TENSOR");
  CheckpointSpec spec = Spec();
  spec.tensors[1].name = std::string("1\0x", 3);
  EXPECT_THAT(backend->MakePlan(spec), refused);
  EXPECT_THAT(backend->MakePlan(spec), Says("tensor 1"));
  spec = Spec();
  spec.tensors[2].dtype = std::string("uint8\0", 6);
  EXPECT_THAT(backend->MakePlan(spec), refused);
  ASSERT_OK_AND_ASSIGN(auto raw, Backend::Create(FakePlugin()));
  spec = Spec(std::string("x\0y", 3));
  EXPECT_THAT(raw->MakePlan(spec), refused);
}

TEST(BackendTest, StopsTheSealWhenAsked) {
  ASSERT_OK_AND_ASSIGN(auto backend, Backend::Create(TorchPlugin()));
  ASSERT_OK_AND_ASSIGN(auto plan, backend->MakePlan(Spec()));
  std::vector<uint8_t> image(plan->file_bytes());
  EXPECT_THAT(backend->Seal(*plan, image.data(), [](uint64_t) { return false; }),
              IsError(StatusCode::kCancelled, "CANCELLED_BY_REQUEST"));
}

TEST(BackendTest, RefusesALayoutOutsideTheFile) {
  ASSERT_OK_AND_ASSIGN(auto backend, Backend::Create(FakePlugin()));
  for (const char* trap : {"outside", "overflow"}) {
    const auto plan = backend->MakePlan(Spec(trap));
    EXPECT_THAT(plan, IsError(StatusCode::kInternal, "INTERNAL")) << trap;
    EXPECT_THAT(plan, Says("backend raw")) << trap;
  }
}

TEST(BackendTest, RefusesAnotherMajorVersion) {
  ckptd_backend plugin = *FakePlugin();
  plugin.abi_major = CKPTD_PLUGIN_ABI_MAJOR + 1;
  // Such a table may be laid out in another way: nothing else of it is read.
  plugin.name = nullptr;
  plugin.plan = nullptr;
  EXPECT_THAT(Backend::Create(&plugin), IsError(StatusCode::kFailedPrecondition, "PLUGIN_REFUSED"));
  EXPECT_THAT(Backend::Create(&plugin), Says("ABI 2, this daemon has 1"));

  plugin = *FakePlugin();
  plugin.abi_minor = CKPTD_PLUGIN_ABI_MINOR + 1;
  EXPECT_OK(Backend::Create(&plugin));
}

TEST(BackendTest, RefusesATableThatLacksSomething) {
  std::vector<ckptd_backend> tables(5, *FakePlugin());
  tables[0].size = offsetof(ckptd_backend, remove);
  tables[1].name = nullptr;
  tables[2].plan = nullptr;
  tables[3].seal = nullptr;
  tables[4].plan_free = nullptr;
  for (size_t i = 0; i < tables.size(); ++i) {
    EXPECT_THAT(Backend::Create(&tables[i]),
                IsError(StatusCode::kFailedPrecondition, "PLUGIN_REFUSED"))
        << i;
  }
  ckptd_backend larger = *FakePlugin();
  larger.size += 8;
  EXPECT_OK(Backend::Create(&larger)) << "a table of a later MINOR reaches further";
}

TEST(PluginTableTest, ATableMayEndBehindWhatIsRequired) {
  ckptd_backend table = {};
  table.size = offsetof(ckptd_backend, configure);
  table.abi_major = CKPTD_PLUGIN_ABI_MAJOR;
  table.name = "short";
  table.version = "1";
  table.save = [](auto...) { return ckptd_code{CKPTD_OK}; };
  table.load = [](auto...) { return ckptd_code{CKPTD_OK}; };
  table.remove = [](auto...) { return ckptd_code{CKPTD_OK}; };
  // What lies behind its end is not the table's.
  std::memset(reinterpret_cast<char*>(&table) + table.size, 0xEE, sizeof(table) - table.size);
  EXPECT_OK(CheckFileTable(table));
  const ckptd_backend whole = WholeTable(table);
  EXPECT_EQ(whole.remove, table.remove);
  EXPECT_EQ(whole.configure, nullptr);
  EXPECT_EQ(whole.plan, nullptr);
  EXPECT_EQ(whole.publish, nullptr);
  EXPECT_THAT(DescribeTable(whole).capabilities, testing::ElementsAre("hosted"));
  table.size = offsetof(ckptd_backend, remove);
  EXPECT_THAT(CheckFileTable(table), Says("what is required"));
}

TEST(BackendTest, TakesAPluginWrittenInC) {
  ASSERT_OK_AND_ASSIGN(auto backend, Backend::Create(ckptd_plugin_in_c()));
  EXPECT_EQ(backend->name(), "in-c");
  EXPECT_THAT(backend->MakePlan(Spec()), Says("plugin in C: plans nothing"));
}

TEST(BackendRegistryTest, FindsByNameAndNamesThemAll) {
  BackendRegistry registry;
  ASSERT_OK(registry.Add(TorchPlugin()));
  ASSERT_OK(registry.Add(FakePlugin()));
  EXPECT_THAT(registry.Names(), testing::ElementsAre("raw", "torch"));
  ASSERT_OK_AND_ASSIGN(const Backend* found, registry.Find("torch"));
  EXPECT_EQ(found->name(), "torch");
  EXPECT_THAT(registry.Find("Torch"), IsError(StatusCode::kNotFound, "BACKEND_NOT_FOUND"));
  EXPECT_THAT(registry.Find("Torch"), Says("raw, torch"));
  EXPECT_THAT(registry.Add(FakePlugin()), IsError(StatusCode::kAlreadyExists, "INTERNAL"));
}

}  // namespace
}  // namespace ckptd
