#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "client/cpp/pickle/reader.h"
#include "client/cpp/pickle/writer.h"
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

TEST(Pickle, RefusesEachTruncation) {
  const std::string sample = Sample();
  for (size_t length = 0; length < sample.size(); ++length) {
    EXPECT_FALSE(ReadPickle(sample.substr(0, length)).ok()) << length;
  }
}

TEST(Pickle, NamesTheOpcodeItRefuses) {
  // os.system called by INST, and a frame of protocol 4.
  EXPECT_THAT(Message("\x80\x02(ios\nsystem\n."), HasSubstr("opcode 0x69"));
  EXPECT_THAT(Message("\x80\x04\x95"), HasSubstr("protocol 4"));
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
  EXPECT_THAT(Message(proto + "\x8a\x09" + "123456789."), HasSubstr("64 bits"));
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
