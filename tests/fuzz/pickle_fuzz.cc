// The pickle reader: whatever it takes must come back as it was when it is written out again, node
// by node, and must not take more memory than its bytes justify.

#include <bit>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cpp/pickle/reader.h"
#include "client/cpp/pickle/writer.h"
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
    if (node.kind == Kind::kTuple || (node.items.empty() && node.state == nullptr)) return;
    Refer(node);
    if (!node.items.empty()) {
      writer_.Mark();
      for (const PickleNode* item : node.items) Refer(*item);
      writer_.Op(node.kind == Kind::kDict ? PickleOp::kSetItems : PickleOp::kAppends);
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
  FUZZ_CHECK(pickle.nodes.size() <= bytes && items <= bytes && text <= bytes, detail);
}

// `copies` are the nodes of the second pickle, in the order of those of the first.
void CheckSame(const PickleNode& node, const std::vector<PickleNode*>& copies) {
  const PickleNode& copy = *copies[node.index];
  auto same = [&](const PickleNode* a, const PickleNode* b) {
    return a == nullptr ? b == nullptr : b == copies[a->index];
  };
  bool ok = node.kind == copy.kind && node.integer == copy.integer && node.text == copy.text &&
            std::bit_cast<uint64_t>(node.number) == std::bit_cast<uint64_t>(copy.number) &&
            same(node.function, copy.function) && same(node.argument, copy.argument) &&
            same(node.state, copy.state) && node.items.size() == copy.items.size();
  for (size_t i = 0; ok && i < node.items.size(); ++i) ok = same(node.items[i], copy.items[i]);
  FUZZ_CHECK(ok, absl::StrCat("node ", node.index));
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
  const std::string again = ckptd::Rewriter().Write(*pickle);
  const absl::StatusOr<Pickle> copy = ckptd::ReadPickle(again);
  FUZZ_CHECK(copy.ok(), copy.status().ToString());
  const std::vector<ckptd::PickleNode*>& copies = copy->root->items;
  FUZZ_CHECK(copies.size() > pickle->nodes.size(), "lost nodes");
  for (const ckptd::PickleNode& node : pickle->nodes) ckptd::CheckSame(node, copies);
  FUZZ_CHECK(copies.back() == copies[pickle->root->index], "has another root");
  return 0;
}
