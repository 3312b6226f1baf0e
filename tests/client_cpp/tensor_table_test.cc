#include "plugins/torch/read/tensor_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "plugins/torch/pickle/writer.h"
#include "tests/server/testing/status_matchers.h"

namespace ckptd {
namespace {

using Kind = TorchValue::Kind;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Writes pickles as torch.save does.
class Object : public PickleWriter {
 public:
  void Storage(const std::string& type, const std::string& key, int64_t numel) {
    Mark();
    String("storage");
    Global("torch", type);
    String(key);
    String("cpu");
    Int(numel);
    Op(PickleOp::kTuple);
    Op(PickleOp::kBinPersid);
  }
  void Ints(const std::vector<int64_t>& values) {
    Mark();
    for (const int64_t value : values) Int(value);
    Op(PickleOp::kTuple);
  }
  void Tensor(const std::string& key, int64_t numel, int64_t offset,
              const std::vector<int64_t>& shape, const std::vector<int64_t>& strides) {
    Global("torch._utils", "_rebuild_tensor_v2");
    Mark();
    Storage("FloatStorage", key, numel);
    Int(offset);
    Ints(shape);
    Ints(strides);
    Bool(false);
    Empty("collections", "OrderedDict");
    Op(PickleOp::kTuple);
    Op(PickleOp::kReduce);
  }
  void Empty(const std::string& module, const std::string& name) {
    Global(module, name);
    Tuple(0);
    Op(PickleOp::kReduce);
  }
};

// {"model": OrderedDict(w=(2, 3) of storage 0, tied=the same, view=w[1:]), "steps": [7]}
std::string Model() {
  Object object;
  object.EmptyDict(nullptr);
  object.Mark();
  object.String("model");
  object.Empty("collections", "OrderedDict");
  object.Mark();
  object.String("w");
  object.Tensor("0", 6, 0, {2, 3}, {3, 1});
  object.String("tied");
  object.Tensor("0", 6, 0, {2, 3}, {3, 1});
  object.String("view");
  object.Tensor("0", 6, 3, {1, 3}, {3, 1});
  object.Op(PickleOp::kSetItems);
  object.String("steps");
  object.EmptyList(nullptr);
  object.Int(7);
  object.Op(PickleOp::kAppend);
  object.Op(PickleOp::kSetItems);
  return object.Finish();
}

std::vector<std::string> Paths(const TorchTable& table) {
  std::vector<std::string> paths;
  for (size_t i = 0; i < table.values.size(); ++i) paths.push_back(table.PathOf(i));
  return paths;
}

std::string Refusal(const std::string& data, size_t max_values = 1000) {
  const absl::StatusOr<Pickle> pickle = ReadPickle(data);
  EXPECT_TRUE(pickle.ok()) << pickle.status();
  return std::string(ReadTorchTable(*pickle, max_values).status().message());
}

TEST(TensorTable, TellsTensorsValuesAndTheirPlaces) {
  ASSERT_OK_AND_ASSIGN(const Pickle pickle, ReadPickle(Model()));
  ASSERT_OK_AND_ASSIGN(const TorchTable table, ReadTorchTable(pickle));
  EXPECT_THAT(Paths(table),
              ElementsAre("", "model", "model.w", "model.tied", "model.view", "steps", "steps.0"));
  EXPECT_EQ(table.values[1].kind, Kind::kOrderedDict);
  EXPECT_EQ(table.values[5].kind, Kind::kList);
  EXPECT_EQ(table.values[6].kind, Kind::kInt);
  EXPECT_EQ(table.values[6].node->integer, 7);
  EXPECT_EQ(table.values[6].depth, 2u);
  ASSERT_EQ(table.tensors.size(), 3u);
  const TorchTensor& w = table.tensors[table.values[2].tensor];
  EXPECT_EQ(w.dtype, "float32");
  EXPECT_EQ(w.item_bytes, 4u);
  EXPECT_THAT(w.shape, ElementsAre(2, 3));
  EXPECT_THAT(w.strides, ElementsAre(3, 1));
  EXPECT_EQ(w.storage, "0");
  EXPECT_EQ(w.storage_bytes, 24u);
  EXPECT_EQ(table.tensors[1].same_as, 0u) << "the same memory, seen in the same way";
  EXPECT_EQ(table.tensors[2].same_as, 2u) << "the same memory, but a part of it";
  EXPECT_EQ(table.tensors[2].offset, 3);
  EXPECT_TRUE(table.unknown.empty());
}

TEST(TensorTable, ReadsParametersAndNewerDtypes) {
  Object object;
  object.Global("torch._utils", "_rebuild_parameter");
  object.Global("torch._utils", "_rebuild_tensor_v3");
  object.Mark();
  object.Mark();
  object.String("storage");
  object.Global("torch.storage", "UntypedStorage");
  object.String("0");
  object.String("cuda:1");
  object.Int(4);
  object.Op(PickleOp::kTuple);
  object.Op(PickleOp::kBinPersid);
  object.Int(0);
  object.Ints({2});
  object.Ints({1});
  object.Bool(false);
  object.None();
  object.Global("torch", "uint16");
  object.Op(PickleOp::kTuple);
  object.Op(PickleOp::kReduce);
  object.Bool(true);
  object.None();
  object.Tuple(3);
  object.Op(PickleOp::kReduce);
  ASSERT_OK_AND_ASSIGN(const Pickle pickle, ReadPickle(object.Finish()));
  ASSERT_OK_AND_ASSIGN(const TorchTable table, ReadTorchTable(pickle));
  ASSERT_EQ(table.tensors.size(), 1u);
  const TorchTensor& tensor = table.tensors[0];
  EXPECT_TRUE(tensor.parameter && tensor.requires_grad);
  EXPECT_EQ(tensor.dtype, "uint16");
  EXPECT_EQ(tensor.location, "cuda:1");
  EXPECT_EQ(tensor.storage_bytes, 4u);
}

TEST(TensorTable, NamesWhatItDoesNotKnowAndLooksInside) {
  Object object;
  object.Empty("argparse", "Namespace");
  object.EmptyDict(nullptr);
  object.Mark();
  object.String("weight");
  object.Tensor("0", 2, 0, {2}, {1});
  object.String("made");
  object.Empty("os", "getcwd");
  object.String("dtype");
  object.Global("torch", "float16");
  object.Op(PickleOp::kSetItems);
  object.Op(PickleOp::kBuild);
  ASSERT_OK_AND_ASSIGN(const Pickle pickle, ReadPickle(object.Finish()));
  ASSERT_OK_AND_ASSIGN(const TorchTable table, ReadTorchTable(pickle));
  EXPECT_THAT(table.unknown, ElementsAre("argparse.Namespace", "os.getcwd"));
  EXPECT_EQ(table.values[0].kind, Kind::kObject);
  EXPECT_EQ(table.values[0].what, "argparse.Namespace");
  EXPECT_THAT(Paths(table), ElementsAre("", "weight", "made", "dtype"));
  EXPECT_EQ(table.tensors.size(), 1u);
  EXPECT_EQ(table.values[3].kind, Kind::kOther);
  EXPECT_EQ(table.values[3].what, "torch.float16");
}

TEST(TensorTable, RefusesTensorsThatAreNone) {
  Object beyond;
  beyond.EmptyDict(nullptr);
  beyond.String("w");
  beyond.Tensor("0", 6, 1, {2, 3}, {3, 1});
  beyond.Op(PickleOp::kSetItem);
  EXPECT_THAT(Refusal(beyond.Finish()), HasSubstr("'w' is a tensor that reaches beyond"));
  Object none;
  none.Global("torch._utils", "_rebuild_tensor_v2");
  none.Ints({1, 2, 3, 4, 5, 6});
  none.Op(PickleOp::kReduce);
  EXPECT_THAT(Refusal(none.Finish()), HasSubstr("has no storage"));
}

// Each list has the one before twice: 2^40 values in 200 bytes; and a list that has itself.
TEST(TensorTable, DoesNotGrowWithoutMeasure) {
  Object object;
  object.EmptyList(nullptr);
  for (int i = 0; i < 40; ++i) {
    const void* identity = reinterpret_cast<const void*>(uintptr_t{1} + i);
    object.Put(identity);
    object.Get(identity);
    object.Tuple(2);
  }
  EXPECT_THAT(Refusal(object.Finish()), HasSubstr("more than 1000 values"));

  Object itself;
  const int list = 0;
  itself.EmptyList(&list);
  itself.Get(&list);
  itself.Op(PickleOp::kAppend);
  ASSERT_OK_AND_ASSIGN(const Pickle pickle, ReadPickle(itself.Finish()));
  ASSERT_OK_AND_ASSIGN(const TorchTable table, ReadTorchTable(pickle));
  ASSERT_EQ(table.values.size(), 2u);
  EXPECT_EQ(table.values[1].what, "a part of itself");
}

}  // namespace
}  // namespace ckptd
