// Converting, from bytes to what is to be saved: what comes of headers that lie, and of every
// value.
#include "client/cpp/convert/convert.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "plugins/torch/pickle/reader.h"
#include "proto/status/error_info.h"

namespace ckptd {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;
using testing::UnorderedElementsAre;

// A safetensors file with one tensor "w" of two float32 and that __metadata__, of JSON's items.
std::string Safetensors(const std::string& metadata, const std::string& more = "") {
  const std::string header = R"({"__metadata__":{)" + metadata +
                             R"(},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})" + more +
                             "}";
  const uint64_t length = header.size();
  std::string bytes(sizeof(length), '\0');
  std::memcpy(bytes.data(), &length, sizeof(length));
  return bytes + header + std::string(8, 'x');
}

absl::Status Refused(const std::string& bytes, const std::string& backend = "torch") {
  auto made = ConvertCheckpoint("f", bytes, backend);
  EXPECT_FALSE(made.ok());
  EXPECT_THAT(made.status().message(), testing::StartsWith("f: "));
  return made.status();
}

TEST(ConvertTest, EveryValueComesBack) {
  const std::string bytes = Safetensors(
      R"("ckptd.tree":"[\"dict\",{\"a.b\":[\"list\",[\"w\",\"t\",[\"tuple\",[]]]],)"
      R"(\"o\":[\"OrderedDict\",{\"i\":\"i\",\"f\":\"f\",\"s\":\"s\",\"n\":\"n\",\"b\":\"b\"}]}]",)"
      R"("ckptd.aliases":"{\"t\":\"w\"}","ckptd.crc32":"00000000",)"
      R"("ckptd.values":"{\"i\":-9223372036854775808,\"f\":1e300,\"s\":\"\\u00fc\",\"n\":null,\"b\":true}",)"
      R"("note":"mine","t":"w")");
  const auto named = ConvertCheckpoint("f", bytes, "npy");
  ASSERT_TRUE(named.ok()) << named.status();
  const SaveSpec& spec = (*named)->spec;
  ASSERT_EQ(spec.tensors.size(), 1U);
  EXPECT_EQ(spec.tensors[0].name, "a.b.0");
  EXPECT_EQ(spec.tensors[0].dtype, "float32");
  EXPECT_THAT(spec.tensors[0].shape, ElementsAre(2));
  EXPECT_EQ(std::string(static_cast<const char*>(spec.tensors[0].data), 8), "xxxxxxxx");
  EXPECT_THAT(
      spec.options,
      UnorderedElementsAre(
          Pair("ckptd.aliases", R"({"a.b.1":"a.b.0"})"), Pair("metadata.note", "mine"),
          Pair("ckptd.values",
               "{\"o.i\":-9223372036854775808,\"o.f\":1e+300,\"o.s\":\"\xc3\xbc\",\"o.n\":null,"
               "\"o.b\":true}"),
          Pair("ckptd.tree",
               R"(["dict",{"a.b":["list",["a.b.0","a.b.1",["tuple",[]]]],)"
               R"("o":["OrderedDict",{"i":"o.i","f":"o.f","s":"o.s","n":"o.n","b":"o.b"}]}])")));

  const auto torch = ConvertCheckpoint("f", bytes, "torch");
  ASSERT_TRUE(torch.ok()) << torch.status();
  EXPECT_THAT((*torch)->dropped, ElementsAre("note"));
  EXPECT_THAT((*torch)->spec.options, testing::IsEmpty());
  const auto pickle = ReadPickle((*torch)->spec.object);
  ASSERT_TRUE(pickle.ok()) << pickle.status();
  const auto& items = pickle->root->items;
  ASSERT_EQ(items.size(), 4U);
  EXPECT_EQ(items[1]->items[0], items[1]->items[1]) << "tied tensors are one";
  const auto& values = items[3]->items;
  ASSERT_EQ(values.size(), 10U);
  EXPECT_EQ(values[1]->integer, INT64_MIN);
  EXPECT_EQ(values[3]->number, 1e300);
  EXPECT_EQ(values[5]->text, "\xc3\xbc");
  EXPECT_EQ(values[7]->kind, PickleNode::Kind::kNone);
  EXPECT_EQ(values[9]->integer, 1);
}

TEST(ConvertTest, NamesOfOthersStayWhatTheyAre) {
  const auto made = ConvertCheckpoint("f", Safetensors(R"("format":"pt","a.tied":"w")"), "x");
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ((*made)->spec.options.at("ckptd.aliases"), R"({"a.tied":"w"})");
  EXPECT_EQ((*made)->spec.options.at("ckptd.tree"), R"(["dict",{"w":"w","a.tied":"a.tied"}])");
}

TEST(ConvertTest, MetadataThatLieAreDamage) {
  const std::vector<std::pair<std::string, std::string>> lies = {
      {R"("ckptd.aliases":"{\"t\":\"v\"}")", "'t' is tied to no tensor"},
      {R"("ckptd.aliases":"{\"w\":\"w\"}")", "'w' is tied to no tensor"},
      {R"("ckptd.aliases":"{")", "no JSON"},
      {R"("ckptd.values":"[]")", "no JSON object"},
      {R"("ckptd.values":"{\"w\":1}")", "'w' is there twice"},
      {R"("ckptd.values":"{\"x\":[]}")", "'x' is no value"},
      {R"("ckptd.values":"{\"x\":99999999999999999999}")", "more than 64 bits"},
      {R"("ckptd.tree":"[\"dict\",{\"a\":\"v\"}]")", "there is no 'v'"},
      {R"("ckptd.tree":"[\"dict\",{}]")", "'w' has no place"},
      {R"("ckptd.tree":"[\"set\",[\"w\"]]")", "no known kind"},
      {R"("ckptd.tree":"[\"list\",{\"a\":\"w\"}]")", "no parts"},
      {R"("ckptd.tree":"[\"list\"]")", "a part is none"},
      {R"("note":"","ckptd.crc32":"00000000","ckptd.values":"{\"w.x\":1}")",
       "beneath another name"},
      {R"("note":"","ckptd.crc32":"00000000","ckptd.values":"{\"a.b\":1,\"a\":2}")",
       "above another name"},
      {R"("n":5)", "metadata 'n' is no text"},
  };
  for (const auto& [metadata, why] : lies) {
    const absl::Status status = Refused(Safetensors(metadata));
    EXPECT_THAT(status.message(), HasSubstr(why)) << metadata;
    EXPECT_EQ(ReasonOf(status), "CORRUPT_CHECKPOINT") << metadata;
  }
}

TEST(ConvertTest, WhatTorchCannotHoldIsRefused) {
  const std::string bytes =
      Safetensors("", R"(,"z":{"dtype":"F3","shape":[0],"data_offsets":[8,8]})");
  const absl::Status status = Refused(bytes);
  EXPECT_EQ(ReasonOf(status), "NOT_CONVERTIBLE");
  EXPECT_THAT(status.message(), HasSubstr("F3"));
}

TEST(ConvertTest, WhatIsNoCheckpointIsRefused) {
  for (const std::string& bytes :
       {std::string(), std::string("text"), std::string("PK\3\4"), std::string(100, 'x')}) {
    (void)Refused(bytes);
  }
}

}  // namespace
}  // namespace ckptd
