#include "plugins/safetensors/safetensors_plugin.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "plugins/safetensors/header.h"
#include "tests/server/testing/fake_host.h"
#include "tests/server/testing/temp_dir.h"

namespace ckptd {
namespace {

using safetensors::kChecksumOffset;
using safetensors::kNoChecksum;

constexpr int64_t kShape[] = {2, 3};
constexpr int64_t kStrides[] = {3, 1};

std::vector<ckptd_tensor> Tensors() {
  return {{"a", "uint8", kShape, kStrides, 2, 6, nullptr},
          {"b.w", "float32", kShape, kStrides, 2, 24, nullptr},
          {"b.s", "float32", nullptr, nullptr, 0, 4, nullptr},
          {"h", "bfloat16", kShape, kStrides, 2, 12, nullptr}};
}

std::string Sealed(FakeHost* host, const std::vector<ckptd_tensor>& tensors) {
  std::vector<uint8_t> image(host->layout().file_bytes);
  uint8_t next = 1;
  for (size_t i = 0; i < tensors.size(); ++i) {
    std::memset(image.data() + host->layout().tensor_offsets[i], next++, tensors[i].size_bytes);
  }
  EXPECT_EQ(host->Seal(image.data()), CKPTD_OK);
  return {image.begin(), image.end()};
}

class SafetensorsPluginTest : public testing::Test {
 protected:
  ckptd_code Verify(const std::string& bytes) {
    const std::string path = dir_.path() + "/x";
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
    return SafetensorsPlugin()->verify(PluginHost(), &host_, path.c_str());
  }

  TempDir dir_;
  FakeHost host_{SafetensorsPlugin()};
};

TEST_F(SafetensorsPluginTest, LaysOutByElementSizeAndThenByName) {
  ASSERT_EQ(host_.Plan(0, Tensors()), CKPTD_OK) << host_.error();
  const uint64_t* at = host_.layout().tensor_offsets;
  const uint64_t begin = at[2];
  EXPECT_EQ(begin % 64, 0u);
  EXPECT_EQ(at[1], begin + 4);
  EXPECT_EQ(at[3], begin + 28);
  EXPECT_EQ(at[0], begin + 40);
  EXPECT_EQ(host_.layout().file_bytes, begin + 46);
  const std::string file = Sealed(&host_, Tensors());
  EXPECT_THAT(file, testing::HasSubstr(R"("format":"pt"},"b.s":{"dtype":"F32","shape":[],"data_off)"
                                       R"(sets":[0,4]},"b.w":{"dtype":"F32","shape":[2,3],"data_o)"
                                       R"(ffsets":[4,28]},"h":{"dtype":"BF16")"));
}

TEST_F(SafetensorsPluginTest, FindsAFlippedByteAnywhere) {
  ASSERT_EQ(host_.Plan(0, Tensors(), {{"metadata.epoch", "3"}}), CKPTD_OK) << host_.error();
  std::string file = Sealed(&host_, Tensors());
  EXPECT_EQ(Verify(file), CKPTD_OK) << host_.error();
  for (char& byte : file) {
    byte = static_cast<char>(byte ^ 0x20);
    EXPECT_EQ(Verify(file), CKPTD_DATA_LOSS) << "byte " << &byte - file.data();
    byte = static_cast<char>(byte ^ 0x20);
  }
  EXPECT_EQ(Verify(file.substr(0, file.size() - 1)), CKPTD_DATA_LOSS);
  EXPECT_EQ(Verify(file + '\0'), CKPTD_DATA_LOSS);
}

TEST_F(SafetensorsPluginTest, SaysSoWhereThereIsNoChecksum) {
  const std::string header = R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})";
  std::string file(8, '\0');
  file[0] = static_cast<char>(header.size());
  EXPECT_EQ(Verify(file + header + "xy"), CKPTD_FAILED_PRECONDITION) << host_.error();
}

TEST_F(SafetensorsPluginTest, TellsItsTensors) {
  ASSERT_EQ(host_.Plan(0, Tensors()), CKPTD_OK) << host_.error();
  ASSERT_EQ(Verify(Sealed(&host_, Tensors())), CKPTD_OK) << host_.error();
  ASSERT_EQ(SafetensorsPlugin()->inspect(PluginHost(), &host_, (dir_.path() + "/x").c_str()),
            CKPTD_OK);
  EXPECT_THAT(host_.found(), testing::ElementsAre("b.s float32 [] 4", "b.w float32 [2,3] 24",
                                                  "h bfloat16 [2,3] 12", "a uint8 [2,3] 6"));
}

TEST_F(SafetensorsPluginTest, RefusesByNameWhatTheFormatCannotHold) {
  const auto refuses = [&](const std::vector<ckptd_tensor>& tensors,
                           const std::vector<ckptd_option>& options, const std::string& why) {
    EXPECT_EQ(host_.Plan(0, tensors, options), CKPTD_INVALID_ARGUMENT) << why;
    EXPECT_THAT(host_.error(), testing::HasSubstr(why));
  };
  refuses({{"z", "complex128", nullptr, nullptr, 0, 16, nullptr}}, {},
          "tensor 'z': is 'complex128'");
  refuses({{"z", "float32", nullptr, nullptr, 0, 5, nullptr}}, {}, "tensor 'z': has 5 bytes");
  refuses({{"__metadata__", "uint8", nullptr, nullptr, 0, 1, nullptr}}, {}, "'__metadata__'");
  refuses({}, {{"ckptd.values", R"({"epoch":3,"lr":1e-3,"note":"x","none":null,"ok":true})"}},
          "'epoch' is an int, 'lr' is a float, 'note' is a str, 'none' is None, 'ok' is a bool");
  refuses({}, {{"compress", "9"}}, "option 'compress'");
  refuses(Tensors(), {{"ckptd.aliases", R"({"tied":"missing"})"}}, "'tied'");
  refuses({}, {{"metadata.format", "tf"}}, "metadata 'format'");
}

TEST_F(SafetensorsPluginTest, NotesAliasesAsTheFormatsUsersDo) {
  ASSERT_EQ(host_.Plan(0, Tensors(), {{"ckptd.aliases", R"({"tied":"b.w"})"}}), CKPTD_OK);
  EXPECT_THAT(Sealed(&host_, Tensors()), testing::HasSubstr(R"("tied":"b.w")"));
}

TEST_F(SafetensorsPluginTest, AnImageForOthersTakesWhateverThereIs) {
  FakeHost host(NamedTensorsPlugin());
  const std::vector<ckptd_tensor> tensors = {{"z", "complex128", nullptr, nullptr, 0, 16, nullptr}};
  ASSERT_EQ(host.Plan(0, tensors, {{"ckptd.values", R"({"epoch":3})"}}), CKPTD_OK) << host.error();
  const std::string file = Sealed(&host, tensors);
  EXPECT_THAT(file, testing::HasSubstr(R"("dtype":"complex128")"));
  EXPECT_THAT(file, testing::HasSubstr(R"("ckptd.values":"{\"epoch\":3}")"));
}

TEST_F(SafetensorsPluginTest, TellsWhatIsFinalBeforeTheChecksumIs) {
  constexpr int64_t kLarge[] = {13 << 20};
  constexpr int64_t kStep[] = {1};
  const std::vector<ckptd_tensor> tensors = {{"w", "uint8", kLarge, kStep, 1, 13 << 20, nullptr}};
  ASSERT_EQ(host_.Plan(0, tensors), CKPTD_OK) << host_.error();
  const ckptd_layout& layout = host_.layout();
  EXPECT_EQ(layout.late_bytes, kChecksumOffset + kNoChecksum.size());
  (void)Sealed(&host_, tensors);
  ASSERT_GE(host_.sealed().size(), 4u);
  EXPECT_TRUE(std::is_sorted(host_.sealed().begin(), host_.sealed().end()));
  EXPECT_GT(host_.sealed().front(), layout.late_bytes);
  // With that the late bytes are final, too: it must come once, and last.
  EXPECT_EQ(host_.sealed().back(), layout.file_bytes);
  EXPECT_LT(host_.sealed()[host_.sealed().size() - 2], layout.file_bytes);
}

TEST_F(SafetensorsPluginTest, StopsTheSealWhenAsked) {
  ASSERT_EQ(host_.Plan(0, Tensors()), CKPTD_OK);
  host_.CancelAt(1);
  std::vector<uint8_t> image(host_.layout().file_bytes);
  EXPECT_EQ(host_.Seal(image.data()), CKPTD_CANCELLED);
}

}  // namespace
}  // namespace ckptd
