// The pickle reader: whatever it takes must come back as it was when it is written out again, node
// by node, and must not take more memory than its bytes justify. Then the table of the tensors in
// it, which must hold together.

#include <bit>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "plugins/torch/pickle/reader.h"
#include "plugins/torch/pickle/writer.h"
#include "plugins/torch/read/tensor_table.h"
#include "tests/fuzz/fuzz.h"

namespace ckptd {
namespace {

using Kind = PickleNode::Kind;

// Writes the nodes in the order in which they were read, all inside one tuple. A node that cannot
// change later refers only to nodes before it, so no recursion is needed, however deep the pickle
// is and whatever contains itself; what can change is filled when all are there.
class Rewriter {
 public:
  std::string Write(const Pickle& pickle) {
    writer_.Mark();
    for (const PickleNode& node : pickle.nodes) Make(node);
    for (const PickleNode& node : pickle.nodes) Fill(node);
    Refer(*pickle.root);
    writer_.Op(PickleOp::kTuple);
    return writer_.Finish();
  }

 private:
  void Refer(const PickleNode& node) {
    if (node.kind == Kind::kString) return writer_.String(node.text);
    if (node.kind == Kind::kGlobal) return Global(node);
    FUZZ_CHECK(writer_.Get(&node), absl::StrCat("node ", node.index, " comes before its parts"));
  }

  void Global(const PickleNode& node) {
    const size_t space = node.text.find(' ');
    writer_.Global(node.text.substr(0, space), node.text.substr(space + 1));
  }

  // What the writer has no method for: with a length of four bytes.
  void Text(PickleOp op, const std::string& bytes) {
    writer_.Op(op);
    for (int i = 0; i < 4; ++i) writer_.Op(static_cast<PickleOp>(bytes.size() >> (8 * i)));
    for (const char c : bytes) writer_.Op(static_cast<PickleOp>(c));
  }

  void Make(const PickleNode& node) {
    switch (node.kind) {
      case Kind::kNone:
        writer_.None();
        break;
      case Kind::kBool:
        writer_.Bool(node.integer != 0);
        break;
      case Kind::kInt:
        writer_.Int(node.integer);
        break;
      case Kind::kFloat:
        writer_.Float(node.number);
        break;
      case Kind::kString:
      case Kind::kGlobal:
        return Refer(node);
      case Kind::kTuple:
        if (node.items.size() > 3) writer_.Mark();
        for (const PickleNode* item : node.items) Refer(*item);
        writer_.Tuple(static_cast<int>(node.items.size()));
        break;
      case Kind::kList:
        return writer_.EmptyList(&node);
      case Kind::kDict:
        return writer_.EmptyDict(&node);
      case Kind::kSet:
        writer_.Op(PickleOp::kEmptySet);
        break;
      case Kind::kFrozenSet:
        writer_.Mark();
        for (const PickleNode* item : node.items) Refer(*item);
        writer_.Op(PickleOp::kFrozenSet);
        break;
      case Kind::kBigInt:
        Text(PickleOp::kLong4, node.text);
        break;
      case Kind::kBytes:
        Text(PickleOp::kBinBytes, node.text);
        break;
      case Kind::kCall:
        Refer(*node.function);
        Refer(*node.argument);
        writer_.Op(PickleOp::kReduce);
        break;
      case Kind::kPersistent:
        Refer(*node.argument);
        writer_.Op(PickleOp::kBinPersid);
        break;
    }
    writer_.Put(&node);
  }

  void Fill(const PickleNode& node) {
    if (node.kind == Kind::kTuple || node.kind == Kind::kFrozenSet ||
        (node.items.empty() && node.state == nullptr)) {
      return;
    }
    Refer(node);
    if (!node.items.empty()) {
      writer_.Mark();
      for (const PickleNode* item : node.items) Refer(*item);
      writer_.Op(node.kind == Kind::kDict || node.keyed ? PickleOp::kSetItems
                 : node.kind == Kind::kSet              ? PickleOp::kAddItems
                                                        : PickleOp::kAppends);
    }
    if (node.state != nullptr) {
      Refer(*node.state);
      writer_.Op(PickleOp::kBuild);
    }
  }

  PickleWriter writer_;
};

void CheckBounds(const Pickle& pickle, size_t bytes) {
  size_t items = 0;
  size_t text = 0;
  for (const PickleNode& node : pickle.nodes) {
    items += node.items.size();
    text += node.text.size();
  }
  const std::string detail = absl::StrCat(pickle.nodes.size(), " nodes, ", items, " items, ", text,
                                          " bytes of text from ", bytes, " bytes");
  // Names of globals may come from strings that are there once.
  const size_t names = (size_t{64} << 10) + bytes;
  FUZZ_CHECK(pickle.nodes.size() <= bytes && items <= bytes && text <= bytes + names, detail);
}

// `copies` are the nodes of the second pickle, in the order of those of the first.
void CheckSame(const PickleNode& node, const std::vector<PickleNode*>& copies) {
  const PickleNode& copy = *copies[node.index];
  auto same = [&](const PickleNode* a, const PickleNode* b) {
    return a == nullptr ? b == nullptr : b == copies[a->index];
  };
  bool ok = node.kind == copy.kind && node.integer == copy.integer && node.text == copy.text &&
            node.keyed == copy.keyed &&
            std::bit_cast<uint64_t>(node.number) == std::bit_cast<uint64_t>(copy.number) &&
            same(node.function, copy.function) && same(node.argument, copy.argument) &&
            same(node.state, copy.state) && node.items.size() == copy.items.size();
  for (size_t i = 0; ok && i < node.items.size(); ++i) ok = same(node.items[i], copy.items[i]);
  FUZZ_CHECK(ok, absl::StrCat("node ", node.index));
}

constexpr size_t kMaxValues = 10'000;

void CheckTensor(const TorchTable& table, size_t index) {
  const TorchTensor& tensor = table.tensors[index];
  FUZZ_CHECK(tensor.shape.size() == tensor.strides.size(), absl::StrCat("tensor ", index));
  FUZZ_CHECK(tensor.same_as <= index, absl::StrCat("tensor ", index));
  const TorchTensor& first = table.tensors[tensor.same_as];
  FUZZ_CHECK(first.same_as == tensor.same_as && first.storage == tensor.storage,
             absl::StrCat("tensor ", index));
  if (!tensor.storage.empty() && tensor.item_bytes > 0 && tensor.contiguous()) {
    const uint64_t count = tensor.element_count();
    FUZZ_CHECK(count == 0 || (tensor.offset >= 0 && static_cast<uint64_t>(tensor.offset) + count <=
                                                        tensor.storage_bytes / tensor.item_bytes),
               absl::StrCat("tensor ", index, " is not in its storage"));
  }
}

void CheckTable(const Pickle& pickle) {
  const absl::StatusOr<TorchTable> table = ReadTorchTable(pickle, kMaxValues);
  if (!table.ok()) {
    FUZZ_CHECK(absl::IsInvalidArgument(table.status()), table.status().ToString());
    return;
  }
  FUZZ_CHECK(!table->values.empty() && table->values.size() <= kMaxValues, "values");
  size_t tensors = 0;
  for (size_t i = 0; i < table->values.size(); ++i) {
    const TorchValue& value = table->values[i];
    FUZZ_CHECK(value.node != nullptr && (i == 0 || value.parent < i), absl::StrCat("value ", i));
    if (value.kind == TorchValue::Kind::kTensor) {
      FUZZ_CHECK(value.tensor == tensors, absl::StrCat("value ", i));
      CheckTensor(*table, tensors++);
    }
  }
  FUZZ_CHECK(tensors == table->tensors.size(), "lost tensors");
  (void)table->PathOf(table->values.size() - 1);
}

}  // namespace
}  // namespace ckptd

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using ckptd::Pickle;
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  const absl::StatusOr<Pickle> pickle = ckptd::ReadPickle(bytes);
  if (!pickle.ok()) {
    FUZZ_CHECK(absl::IsInvalidArgument(pickle.status()), pickle.status().ToString());
    return 0;
  }
  FUZZ_CHECK(pickle->root != nullptr, "has no root");
  ckptd::CheckBounds(*pickle, size);
  ckptd::CheckTable(*pickle);
  const std::string again = ckptd::Rewriter().Write(*pickle);
  const absl::StatusOr<Pickle> copy = ckptd::ReadPickle(again);
  FUZZ_CHECK(copy.ok(), copy.status().ToString());
  const std::vector<ckptd::PickleNode*>& copies = copy->root->items;
  FUZZ_CHECK(copies.size() > pickle->nodes.size(), "lost nodes");
  for (const ckptd::PickleNode& node : pickle->nodes) ckptd::CheckSame(node, copies);
  FUZZ_CHECK(copies.back() == copies[pickle->root->index], "has another root");
  return 0;
}
