#include "plugins/torch/torch_plugin.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/server/testing/fake_host.h"
#include "tests/server/testing/temp_dir.h"

namespace ckptd {
namespace {

// Of small.pt.
constexpr uint64_t kObjectBytes = 308;
const std::vector<uint64_t>& SmallSizes() {
  static const std::vector<uint64_t> sizes = {20, 0, 3};
  return sizes;
}

TEST(TorchPluginTest, FileEqualsTorchSaves) {
  const std::string golden = ReadFile(CKPTD_TESTDATA "/small.pt");
  FakeHost host(TorchPlugin());
  ASSERT_EQ(host.Plan(kObjectBytes, Storages(SmallSizes())), CKPTD_OK);
  ASSERT_EQ(host.layout().file_bytes, golden.size());

  // Only the payload comes from the golden file; the rest is rubbish that seal has to write over.
  std::string image(golden.size(), '\xAA');
  auto copy = [&](uint64_t offset, uint64_t size) {
    std::copy_n(golden.begin() + static_cast<int64_t>(offset), size,
                image.begin() + static_cast<int64_t>(offset));
  };
  copy(host.layout().object_offset, kObjectBytes);
  for (size_t i = 0; i < SmallSizes().size(); ++i) {
    copy(host.layout().tensor_offsets[i], SmallSizes()[i]);
  }
  ASSERT_EQ(host.Seal(reinterpret_cast<uint8_t*>(image.data())), CKPTD_OK);
  EXPECT_EQ(image, golden);

  // Idempotent.
  ASSERT_EQ(host.Seal(reinterpret_cast<uint8_t*>(image.data())), CKPTD_OK);
  EXPECT_EQ(image, golden);
}

TEST(TorchPluginTest, PlanIsPure) {
  FakeHost a(TorchPlugin());
  FakeHost b(TorchPlugin());
  const std::vector<uint64_t> sizes = {1, 0, 4096, 77};
  ASSERT_EQ(a.Plan(9, Storages(sizes)), CKPTD_OK);
  ASSERT_EQ(b.Plan(9, Storages(sizes)), CKPTD_OK);
  EXPECT_EQ(a.layout().file_bytes, b.layout().file_bytes);
  EXPECT_EQ(a.layout().object_offset, b.layout().object_offset);
  for (size_t i = 0; i < sizes.size(); ++i) {
    EXPECT_EQ(a.layout().tensor_offsets[i], b.layout().tensor_offsets[i]);
  }
}

TEST(TorchPluginTest, SealTellsHowFarItIsFromFrontToBack) {
  FakeHost host(TorchPlugin());
  // More than three steps of the checksum in one storage, then enough small ones for another.
  const std::vector<uint64_t> sizes = {13 << 20, 3 << 20, 3 << 20, 0};
  ASSERT_EQ(host.Plan(100, Storages(sizes)), CKPTD_OK);
  std::vector<uint8_t> image(host.layout().file_bytes);
  ASSERT_EQ(host.Seal(image.data()), CKPTD_OK);
  EXPECT_GE(host.sealed().size(), 5u);
  EXPECT_TRUE(std::is_sorted(host.sealed().begin(), host.sealed().end()));
  EXPECT_EQ(host.sealed().back(), host.layout().file_bytes);
}

// What sealed was told is final: it does not change until the end.
TEST(TorchPluginTest, WhatIsSealedStaysAsItIs) {
  FakeHost whole(TorchPlugin());
  const std::vector<uint64_t> sizes = {6 << 20, 5 << 20};
  ASSERT_EQ(whole.Plan(100, Storages(sizes)), CKPTD_OK);
  std::vector<uint8_t> finished(whole.layout().file_bytes, 7);
  ASSERT_EQ(whole.Seal(finished.data()), CKPTD_OK);
  ASSERT_GE(whole.sealed().size(), 2u);

  for (size_t stop = 1; stop <= whole.sealed().size(); ++stop) {
    FakeHost host(TorchPlugin());
    ASSERT_EQ(host.Plan(100, Storages(sizes)), CKPTD_OK);
    std::vector<uint8_t> image(host.layout().file_bytes, 7);
    host.CancelAt(stop);
    EXPECT_EQ(host.Seal(image.data()), CKPTD_CANCELLED);
    ASSERT_EQ(host.sealed().size(), stop) << "seal went on after it was told to stop";
    EXPECT_NE(host.error(), "");
    const auto final_bytes = static_cast<int64_t>(host.sealed().back());
    EXPECT_TRUE(std::equal(image.begin(), image.begin() + final_bytes, finished.begin()));
  }
}

TEST(TorchPluginTest, RefusesOptions) {
  FakeHost host(TorchPlugin());
  EXPECT_EQ(host.Plan(9, Storages({1}), {{"compress", "yes"}}), CKPTD_INVALID_ARGUMENT);
  EXPECT_NE(host.error().find("option 'compress'"), std::string::npos) << host.error();
}

TEST(TorchPluginTest, RefusesAnEmptyObject) {
  FakeHost host(TorchPlugin());
  EXPECT_EQ(host.Plan(0, Storages({1})), CKPTD_INVALID_ARGUMENT);
  EXPECT_NE(host.error().find("object_bytes"), std::string::npos) << host.error();
}

TEST(TorchPluginTest, RefusesNamesOutOfOrder) {
  FakeHost host(TorchPlugin());
  std::vector<ckptd_tensor> tensors = Storages({1, 2, 3});
  std::swap(tensors[1], tensors[2]);
  EXPECT_EQ(host.Plan(9, tensors), CKPTD_INVALID_ARGUMENT);
  EXPECT_NE(host.error().find("tensor 1: is named '2'"), std::string::npos) << host.error();

  for (const char* name : {"", "00", "0 ", "-0", "x", "../0"}) {
    tensors = {{name, "", nullptr, nullptr, 0, 1, nullptr}};
    EXPECT_EQ(host.Plan(9, tensors), CKPTD_INVALID_ARGUMENT) << name;
  }
}

TEST(TorchPluginTest, TellsTensorsAndDamage) {
  const TempDir dir;
  const std::string path = dir.path() + "/x.pt";
  std::string bytes = ReadFile(CKPTD_TESTDATA "/small.pt");
  WriteFile(path, bytes);
  FakeHost host(XlaPlugin());
  ASSERT_EQ(XlaPlugin()->inspect(PluginHost(), &host, path.c_str()), CKPTD_OK) << host.error();
  EXPECT_THAT(host.found(), testing::ElementsAre("weight float32 [5] 20", "empty float32 [0] 0",
                                                 "mask bool [3] 3"));
  EXPECT_EQ(TorchPlugin()->verify(PluginHost(), &host, path.c_str()), CKPTD_OK) << host.error();

  const size_t payload = bytes.find("data/0") + 68;
  bytes[payload + 3] ^= 1;
  WriteFile(path, bytes);
  EXPECT_EQ(TorchPlugin()->verify(PluginHost(), &host, path.c_str()), CKPTD_DATA_LOSS);
  host.CancelAt(host.sealed().size() + 1);
  EXPECT_EQ(TorchPlugin()->verify(PluginHost(), &host, path.c_str()), CKPTD_CANCELLED);
  WriteFile(path, "no zip");
  EXPECT_EQ(TorchPlugin()->verify(PluginHost(), &host, path.c_str()), CKPTD_FAILED_PRECONDITION);
  EXPECT_EQ(TorchPlugin()->inspect(PluginHost(), &host, path.c_str()), CKPTD_FAILED_PRECONDITION);
  EXPECT_THAT(host.error(), testing::HasSubstr("is no zip file"));
  EXPECT_EQ(TorchPlugin()->inspect(PluginHost(), &host, "/no/such"), CKPTD_NOT_FOUND);
}

}  // namespace
}  // namespace ckptd
