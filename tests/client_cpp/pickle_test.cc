#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "plugins/torch/pickle/reader.h"
#include "plugins/torch/pickle/writer.h"
#include "tests/server/testing/status_matchers.h"

namespace ckptd {
namespace {

using Kind = PickleNode::Kind;
using ::testing::HasSubstr;

std::string Message(absl::string_view data) {
  return std::string(ReadPickle(data).status().message());
}

// {"a": [1, (2.5, None), True], "b": OrderedDict()} with the list a second time under "c".
std::string Sample() {
  PickleWriter writer;
  int dict = 0;
  int list = 0;
  writer.EmptyDict(&dict);
  writer.Mark();
  writer.String("a");
  writer.EmptyList(&list);
  writer.Mark();
  writer.Int(1);
  writer.Float(2.5);
  writer.None();
  writer.Tuple(2);
  writer.Bool(true);
  writer.Op(PickleOp::kAppends);
  writer.String("b");
  writer.Global("collections", "OrderedDict");
  writer.Tuple(0);
  writer.Op(PickleOp::kReduce);
  writer.String("c");
  EXPECT_TRUE(writer.Get(&list));
  writer.Op(PickleOp::kSetItems);
  return writer.Finish();
}

TEST(Pickle, ComesBackAsItWasWritten) {
  ASSERT_OK_AND_ASSIGN(Pickle pickle, ReadPickle(Sample()));
  const PickleNode& dict = *pickle.root;
  ASSERT_EQ(dict.kind, Kind::kDict);
  ASSERT_EQ(dict.items.size(), 6u);
  EXPECT_EQ(dict.items[0]->text, "a");
  const PickleNode& list = *dict.items[1];
  ASSERT_EQ(list.items.size(), 3u);
  EXPECT_EQ(list.items[0]->integer, 1);
  ASSERT_EQ(list.items[1]->kind, Kind::kTuple);
  EXPECT_EQ(list.items[1]->items[0]->number, 2.5);
  EXPECT_EQ(list.items[1]->items[1]->kind, Kind::kNone);
  EXPECT_EQ(list.items[2]->kind, Kind::kBool);
  ASSERT_EQ(dict.items[3]->kind, Kind::kCall);
  EXPECT_EQ(dict.items[3]->function->text, "collections OrderedDict");
  EXPECT_EQ(dict.items[5], &list) << "what is shared must stay shared";
}

TEST(Pickle, KeepsEveryInteger) {
  for (int bits = 0; bits < 64; ++bits) {
    const uint64_t power = uint64_t{1} << bits;
    for (uint64_t unsigned_value : {power, power - 1, ~power, ~power + 1, ~power + 2}) {
      const auto value = static_cast<int64_t>(unsigned_value);
      PickleWriter writer;
      writer.Int(value);
      ASSERT_OK_AND_ASSIGN(Pickle pickle, ReadPickle(writer.Finish()));
      EXPECT_EQ(pickle.root->integer, value);
    }
  }
}

TEST(Pickle, TakesStringsFromTheMemo) {
  PickleWriter writer;
  writer.Mark();
  for (int i = 0; i < 600; ++i) writer.String("name" + std::to_string(i % 300));
  writer.Tuple(600);
  ASSERT_OK_AND_ASSIGN(Pickle pickle, ReadPickle(writer.Finish()));
  ASSERT_EQ(pickle.root->items.size(), 600u);
  EXPECT_EQ(pickle.root->items[299], pickle.root->items[599]);
  EXPECT_EQ(pickle.root->items[599]->text, "name299");
}

TEST(Pickle, ReadsListThatContainsItself) {
  PickleWriter writer;
  int list = 0;
  writer.EmptyList(&list);
  writer.Mark();
  writer.Get(&list);
  writer.Op(PickleOp::kAppends);
  ASSERT_OK_AND_ASSIGN(Pickle pickle, ReadPickle(writer.Finish()));
  EXPECT_EQ(pickle.root->items[0], pickle.root);
}

TEST(Pickle, ReadsWhatLaterProtocolsHave) {
  // pickle.dumps((b"ab", {1}, frozenset((2,)), 1 << 70, "x"), 4), without its memo, and a class
  // with keywords.
  const std::string data = std::string("\x80\x04\x95\0\0\0\0\0\0\0\0", 11) + "(C\x02" +
                           "ab\x8f(K\x01\x90(K\x02\x91\x8a\x09" +
                           std::string("\0\0\0\0\0\0\0\0\x40", 9) + "\x8c\x01x\x94" +
                           "\x8c\x01m\x8c\x01n\x93)}\x92t.";
  ASSERT_OK_AND_ASSIGN(Pickle pickle, ReadPickle(data));
  const std::vector<PickleNode*>& items = pickle.root->items;
  ASSERT_EQ(items.size(), 6u);
  EXPECT_EQ(items[0]->kind, Kind::kBytes);
  EXPECT_EQ(items[0]->text, "ab");
  ASSERT_EQ(items[1]->kind, Kind::kSet);
  EXPECT_EQ(items[1]->items[0]->integer, 1);
  ASSERT_EQ(items[2]->kind, Kind::kFrozenSet);
  EXPECT_EQ(items[2]->items[0]->integer, 2);
  EXPECT_EQ(items[3]->kind, Kind::kBigInt);
  EXPECT_EQ(items[4]->text, "x");
  ASSERT_EQ(items[5]->kind, Kind::kCall);
  EXPECT_EQ(items[5]->function->text, "m n");
  EXPECT_EQ(items[5]->argument->items[1]->kind, Kind::kDict);
}

// 64 KiB of name for every five bytes.
TEST(Pickle, DoesNotLetNamesGrow) {
  std::string data = std::string("\x80\x04X\0\0\1\0", 7) + std::string(1 << 16, 'm') + "\x94";
  for (int i = 0; i < 1000; ++i) data += std::string("h\0h\0\x93\x30", 6);
  EXPECT_THAT(Message(data + "N."), HasSubstr("without measure"));
}

TEST(Pickle, RefusesEachTruncation) {
  const std::string sample = Sample();
  for (size_t length = 0; length < sample.size(); ++length) {
    EXPECT_FALSE(ReadPickle(sample.substr(0, length)).ok()) << length;
  }
}

TEST(Pickle, NamesTheOpcodeItRefuses) {
  // os.system called by INST.
  EXPECT_THAT(Message("\x80\x02(ios\nsystem\n."), HasSubstr("opcode 0x69"));
  EXPECT_THAT(Message("\x80\x01N."), HasSubstr("protocol 1"));
  EXPECT_THAT(Message("\x80\x06N."), HasSubstr("protocol 6"));
  EXPECT_THAT(Message("\x80\x04\x95"), HasSubstr("cut short"));
  EXPECT_THAT(Message("garbage"), HasSubstr("PROTO"));
}

TEST(Pickle, RefusesWhatIsInconsistent) {
  const std::string proto = "\x80\x02";
  EXPECT_THAT(Message(proto + "."), HasSubstr("stack"));
  EXPECT_THAT(Message(proto + "NN."), HasSubstr("leaves values"));
  EXPECT_THAT(Message(proto + "h\x07."), HasSubstr("memo 7"));
  EXPECT_THAT(Message(proto + "Ne."), HasSubstr("MARK"));
  EXPECT_THAT(Message(proto + "N(Ne."), HasSubstr("adds items"));
  EXPECT_THAT(Message(proto + "}(Nu."), HasSubstr("without a value"));
  EXPECT_THAT(Message(proto + "NNR."), HasSubstr("not a global"));
  EXPECT_THAT(Message(proto + "NNb."), HasSubstr("state"));
  EXPECT_THAT(Message(proto + "(Na."), HasSubstr("stack"));
  EXPECT_THAT(Message(proto + "X\xff\xff\xff\xff" + "short."), HasSubstr("cut short"));
  EXPECT_THAT(Message(proto + "cos\nsystem\n)R(NNu(Ne."), HasSubstr("with and without keys"));
  EXPECT_THAT(Message(proto + "NN\x93."), HasSubstr("no string"));
}

TEST(Pickle, SurvivesArbitraryChanges) {
  const std::string sample = Sample();
  std::minstd_rand random(1);  // NOLINT(bugprone-random-generator-seed): the same each time.
  for (int round = 0; round < 20000; ++round) {
    std::string changed = sample;
    for (int i = 0; i < 3; ++i) changed[random() % changed.size()] = static_cast<char>(random());
    // Whatever it says, it says so without a crash, and a tree has a root.
    absl::StatusOr<Pickle> pickle = ReadPickle(changed);
    EXPECT_TRUE(!pickle.ok() || pickle->root != nullptr);
  }
}

}  // namespace
}  // namespace ckptd
