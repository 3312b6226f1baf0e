#include "plugins/torch/pickle/reader.h"

#include <bit>
#include <cstring>
#include <unordered_map>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "plugins/torch/pickle/opcodes.h"
#include "proto/status/status_macros.h"

namespace ckptd {
namespace {

using Kind = PickleNode::Kind;

// Names in a pickle of protocol 4 may be put together from strings that are there once. All of them
// together may be this much longer than the pickle.
constexpr size_t kMaxNameBytes = size_t{64} << 10;

class Reader {
 public:
  explicit Reader(absl::string_view data) : data_(data) {}

  absl::StatusOr<Pickle> Read() {
    if (data_.size() < 2 || static_cast<PickleOp>(data_[0]) != PickleOp::kProto) {
      return Error("is not a pickle: it does not begin with PROTO");
    }
    bool stopped = false;
    while (!stopped) {
      op_at_ = at_;
      CKPTD_ASSIGN_OR_RETURN(uint64_t op, Unsigned(1));
      CKPTD_RETURN_IF_ERROR(Step(static_cast<PickleOp>(op), stopped));
    }
    CKPTD_ASSIGN_OR_RETURN(PickleNode * root, Pop());
    if (!stack_.empty() || !marks_.empty()) return Error("leaves values on the stack");
    pickle_.root = root;
    return std::move(pickle_);
  }

 private:
  absl::Status Error(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat("the pickle ", what, " (at byte ", op_at_, ")"));
  }

  // ---- Bytes.
  absl::StatusOr<absl::string_view> Bytes(uint64_t length) {
    if (length > data_.size() - at_) return Error("is cut short");
    absl::string_view bytes = data_.substr(at_, length);
    at_ += length;
    return bytes;
  }

  absl::StatusOr<uint64_t> Unsigned(size_t length) {
    CKPTD_ASSIGN_OR_RETURN(absl::string_view bytes, Bytes(length));
    uint64_t value = 0;
    for (size_t i = 0; i < length; ++i) {
      value |= uint64_t{static_cast<uint8_t>(bytes[i])} << (8 * i);
    }
    return value;
  }

  absl::StatusOr<absl::string_view> Line() {
    const size_t end = data_.find('\n', at_);
    if (end == absl::string_view::npos) return Error("is cut short");
    CKPTD_ASSIGN_OR_RETURN(absl::string_view line, Bytes(end - at_));
    ++at_;
    return line;
  }

  // ---- The stack.
  PickleNode& New(Kind kind) {
    PickleNode& node = pickle_.nodes.emplace_back();
    node.kind = kind;
    node.index = pickle_.nodes.size() - 1;
    return node;
  }
  PickleNode& Push(Kind kind) {
    PickleNode& node = New(kind);
    stack_.push_back(&node);
    return node;
  }

  absl::StatusOr<PickleNode*> Pop() {
    const size_t floor = marks_.empty() ? 0 : marks_.back();
    if (stack_.size() <= floor) return Error("takes more from the stack than there is");
    PickleNode* node = stack_.back();
    stack_.pop_back();
    return node;
  }

  absl::StatusOr<std::vector<PickleNode*>> PopToMark() {
    if (marks_.empty()) return Error("looks for a MARK that is not there");
    const auto from = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
    std::vector<PickleNode*> items(from, stack_.end());
    stack_.erase(from, stack_.end());
    marks_.pop_back();
    return items;
  }

  absl::StatusOr<PickleNode*> Top() {
    CKPTD_ASSIGN_OR_RETURN(PickleNode * top, Pop());
    stack_.push_back(top);
    return top;
  }

  // ---- Opcodes.
  absl::Status Step(PickleOp op, bool& stopped);
  absl::Status Value(PickleOp op);
  absl::Status Container(PickleOp op);
  absl::Status Number(PickleOp op);
  absl::Status Text(Kind kind, size_t length_bytes);
  absl::Status Long(size_t length_bytes);
  absl::Status Tuple(size_t size);
  absl::Status Gather(Kind kind);
  absl::Status Extend(Kind target, std::vector<PickleNode*> items);
  absl::Status Reduce();
  absl::Status NewObjectWithKeywords();
  absl::Status Global();
  absl::Status StackGlobal();
  absl::Status Discard();
  absl::Status Memo(PickleOp op);
  absl::Status Put(uint64_t key);
  absl::Status Get(uint64_t key);

  const absl::string_view data_;
  size_t at_ = 0;
  size_t op_at_ = 0;
  Pickle pickle_;
  std::vector<PickleNode*> stack_;
  std::vector<size_t> marks_;  // Stack sizes at each MARK.
  std::unordered_map<uint64_t, PickleNode*> memo_;
  size_t name_bytes_ = 0;  // Of names that StackGlobal has put together.
};

absl::Status Reader::Text(Kind kind, size_t length_bytes) {
  CKPTD_ASSIGN_OR_RETURN(uint64_t length, Unsigned(length_bytes));
  CKPTD_ASSIGN_OR_RETURN(absl::string_view bytes, Bytes(length));
  Push(kind).text = std::string(bytes);
  return absl::OkStatus();
}

absl::Status Reader::Long(size_t length_bytes) {
  CKPTD_ASSIGN_OR_RETURN(uint64_t length, Unsigned(length_bytes));
  if (length > 8) {
    CKPTD_ASSIGN_OR_RETURN(absl::string_view bytes, Bytes(length));
    Push(Kind::kBigInt).text = std::string(bytes);
    return absl::OkStatus();
  }
  CKPTD_ASSIGN_OR_RETURN(uint64_t value, Unsigned(length));
  if (length > 0 && length < 8 && (value >> (8 * length - 1)) != 0)
    value |= ~uint64_t{0} << (8 * length);
  Push(Kind::kInt).integer = static_cast<int64_t>(value);
  return absl::OkStatus();
}

absl::Status Reader::Number(PickleOp op) {
  switch (op) {
    case PickleOp::kBinInt1:
    case PickleOp::kBinInt2: {
      CKPTD_ASSIGN_OR_RETURN(uint64_t value, Unsigned(op == PickleOp::kBinInt1 ? 1 : 2));
      Push(Kind::kInt).integer = static_cast<int64_t>(value);
      return absl::OkStatus();
    }
    case PickleOp::kBinInt: {
      CKPTD_ASSIGN_OR_RETURN(uint64_t value, Unsigned(4));
      Push(Kind::kInt).integer = static_cast<int32_t>(value);
      return absl::OkStatus();
    }
    case PickleOp::kLong1:
    case PickleOp::kLong4:
      return Long(op == PickleOp::kLong1 ? 1 : 4);
    default: {
      CKPTD_ASSIGN_OR_RETURN(uint64_t bits, Unsigned(8));
      Push(Kind::kFloat).number = std::bit_cast<double>(__builtin_bswap64(bits));
      return absl::OkStatus();
    }
  }
}

absl::Status Reader::Tuple(size_t size) {
  std::vector<PickleNode*> items(size);
  for (size_t i = size; i > 0; --i) {
    CKPTD_ASSIGN_OR_RETURN(items[i - 1], Pop());
  }
  Push(Kind::kTuple).items = std::move(items);
  return absl::OkStatus();
}

absl::Status Reader::Gather(Kind kind) {
  CKPTD_ASSIGN_OR_RETURN(std::vector<PickleNode*> items, PopToMark());
  Push(kind).items = std::move(items);
  return absl::OkStatus();
}

absl::Status Reader::Extend(Kind target, std::vector<PickleNode*> items) {
  CKPTD_ASSIGN_OR_RETURN(PickleNode * top, Top());
  if (top->kind != target && top->kind != Kind::kCall) {
    return Error("adds items to something that has none");
  }
  const bool keyed = target == Kind::kDict;
  if (keyed && items.size() % 2 != 0) return Error("has a key without a value");
  if (top->kind == Kind::kCall && !items.empty()) {
    if (!top->items.empty() && top->keyed != keyed) {
      return Error("adds items with and without keys to the same thing");
    }
    top->keyed = keyed;
  }
  top->items.insert(top->items.end(), items.begin(), items.end());
  return absl::OkStatus();
}

absl::Status Reader::Reduce() {
  CKPTD_ASSIGN_OR_RETURN(PickleNode * argument, Pop());
  CKPTD_ASSIGN_OR_RETURN(PickleNode * function, Pop());
  const bool callable = function->kind == Kind::kGlobal || function->kind == Kind::kCall;
  if (argument->kind != Kind::kTuple || !callable) {
    return Error("calls something that is not a global, or without a tuple");
  }
  PickleNode& call = Push(Kind::kCall);
  call.function = function;
  call.argument = argument;
  return absl::OkStatus();
}

absl::Status Reader::NewObjectWithKeywords() {
  CKPTD_ASSIGN_OR_RETURN(PickleNode * keywords, Pop());
  CKPTD_ASSIGN_OR_RETURN(PickleNode * arguments, Pop());
  PickleNode& both = Push(Kind::kTuple);
  both.items = {arguments, keywords};
  return Reduce();
}

absl::Status Reader::Global() {
  CKPTD_ASSIGN_OR_RETURN(absl::string_view module, Line());
  CKPTD_ASSIGN_OR_RETURN(absl::string_view name, Line());
  Push(Kind::kGlobal).text = absl::StrCat(module, " ", name);
  return absl::OkStatus();
}

absl::Status Reader::StackGlobal() {
  CKPTD_ASSIGN_OR_RETURN(PickleNode * name, Pop());
  CKPTD_ASSIGN_OR_RETURN(PickleNode * module, Pop());
  if (module->kind != Kind::kString || name->kind != Kind::kString) {
    return Error("names a global by something that is no string");
  }
  // No older pickle could name it, and no import finds it.
  if (absl::StrContains(module->text, '\n') || absl::StrContains(name->text, '\n')) {
    return Error("names a global by two lines");
  }
  name_bytes_ += module->text.size() + name->text.size() + 1;
  if (name_bytes_ > data_.size() + kMaxNameBytes) return Error("has names without measure");
  std::string text = absl::StrCat(module->text, " ", name->text);
  Push(Kind::kGlobal).text = std::move(text);
  return absl::OkStatus();
}

// POP, which takes a mark where that is on top.
absl::Status Reader::Discard() {
  if (!marks_.empty() && marks_.back() == stack_.size()) {
    marks_.pop_back();
    return absl::OkStatus();
  }
  return Pop().status();
}

absl::Status Reader::Memo(PickleOp op) {
  if (op == PickleOp::kMemoize) return Put(memo_.size());
  const bool is_short = op == PickleOp::kBinPut || op == PickleOp::kBinGet;
  CKPTD_ASSIGN_OR_RETURN(uint64_t key, Unsigned(is_short ? 1 : 4));
  return op == PickleOp::kBinGet || op == PickleOp::kLongBinGet ? Get(key) : Put(key);
}

absl::Status Reader::Put(uint64_t key) {
  CKPTD_ASSIGN_OR_RETURN(PickleNode * top, Top());
  memo_[key] = top;
  return absl::OkStatus();
}

absl::Status Reader::Get(uint64_t key) {
  const auto it = memo_.find(key);
  if (it == memo_.end()) return Error(absl::StrCat("uses memo ", key, ", which is not set"));
  stack_.push_back(it->second);
  return absl::OkStatus();
}

absl::Status Reader::Container(PickleOp op) {
  switch (op) {
    case PickleOp::kTuple:
      return Gather(Kind::kTuple);
    case PickleOp::kFrozenSet:
      return Gather(Kind::kFrozenSet);
    case PickleOp::kAppend: {
      CKPTD_ASSIGN_OR_RETURN(PickleNode * item, Pop());
      return Extend(Kind::kList, {item});
    }
    case PickleOp::kSetItem: {
      CKPTD_ASSIGN_OR_RETURN(PickleNode * value, Pop());
      CKPTD_ASSIGN_OR_RETURN(PickleNode * key, Pop());
      return Extend(Kind::kDict, {key, value});
    }
    case PickleOp::kAppends:
    case PickleOp::kSetItems:
    case PickleOp::kAddItems: {
      CKPTD_ASSIGN_OR_RETURN(std::vector<PickleNode*> items, PopToMark());
      const Kind target = op == PickleOp::kAppends    ? Kind::kList
                          : op == PickleOp::kSetItems ? Kind::kDict
                                                      : Kind::kSet;
      return Extend(target, std::move(items));
    }
    default: {  // BUILD
      CKPTD_ASSIGN_OR_RETURN(PickleNode * state, Pop());
      CKPTD_ASSIGN_OR_RETURN(PickleNode * top, Top());
      if (top->kind != Kind::kCall) return Error("gives a state to something that has none");
      top->state = state;
      return absl::OkStatus();
    }
  }
}

absl::Status Reader::Step(PickleOp op, bool& stopped) {
  switch (op) {
    case PickleOp::kProto: {
      CKPTD_ASSIGN_OR_RETURN(uint64_t protocol, Unsigned(1));
      if (protocol >= 2 && protocol <= 5) return absl::OkStatus();
      return Error(absl::StrCat("has protocol ", protocol, ", not 2 to 5"));
    }
    case PickleOp::kFrame:
      return Bytes(8).status();
    case PickleOp::kStop:
      stopped = true;
      return absl::OkStatus();
    case PickleOp::kMark:
      marks_.push_back(stack_.size());
      return absl::OkStatus();
    case PickleOp::kPop:
      return Discard();
    case PickleOp::kPopMark:
      return PopToMark().status();
    case PickleOp::kTuple:
    case PickleOp::kFrozenSet:
    case PickleOp::kAppend:
    case PickleOp::kAppends:
    case PickleOp::kAddItems:
    case PickleOp::kSetItem:
    case PickleOp::kSetItems:
    case PickleOp::kBuild:
      return Container(op);
    case PickleOp::kGlobal:
      return Global();
    case PickleOp::kStackGlobal:
      return StackGlobal();
    case PickleOp::kReduce:
    case PickleOp::kNewObj:
      return Reduce();
    case PickleOp::kNewObjEx:
      return NewObjectWithKeywords();
    case PickleOp::kBinPersid: {
      CKPTD_ASSIGN_OR_RETURN(PickleNode * id, Pop());
      Push(Kind::kPersistent).argument = id;
      return absl::OkStatus();
    }
    case PickleOp::kBinPut:
    case PickleOp::kLongBinPut:
    case PickleOp::kMemoize:
    case PickleOp::kBinGet:
    case PickleOp::kLongBinGet:
      return Memo(op);
    default:
      return Value(op);
  }
}

// What pushes one value.
absl::Status Reader::Value(PickleOp op) {
  switch (op) {
    case PickleOp::kNone:
      Push(Kind::kNone);
      return absl::OkStatus();
    case PickleOp::kNewTrue:
    case PickleOp::kNewFalse:
      Push(Kind::kBool).integer = op == PickleOp::kNewTrue ? 1 : 0;
      return absl::OkStatus();
    case PickleOp::kBinInt:
    case PickleOp::kBinInt1:
    case PickleOp::kBinInt2:
    case PickleOp::kLong1:
    case PickleOp::kLong4:
    case PickleOp::kBinFloat:
      return Number(op);
    case PickleOp::kShortBinString:
    case PickleOp::kShortBinUnicode:
      return Text(Kind::kString, 1);
    case PickleOp::kBinString:
    case PickleOp::kBinUnicode:
      return Text(Kind::kString, 4);
    case PickleOp::kBinUnicode8:
      return Text(Kind::kString, 8);
    case PickleOp::kShortBinBytes:
      return Text(Kind::kBytes, 1);
    case PickleOp::kBinBytes:
      return Text(Kind::kBytes, 4);
    case PickleOp::kBinBytes8:
    case PickleOp::kByteArray8:
      return Text(Kind::kBytes, 8);
    case PickleOp::kEmptyTuple:
      Push(Kind::kTuple);
      return absl::OkStatus();
    case PickleOp::kEmptyList:
      Push(Kind::kList);
      return absl::OkStatus();
    case PickleOp::kEmptyDict:
      Push(Kind::kDict);
      return absl::OkStatus();
    case PickleOp::kEmptySet:
      Push(Kind::kSet);
      return absl::OkStatus();
    case PickleOp::kTuple1:
      return Tuple(1);
    case PickleOp::kTuple2:
      return Tuple(2);
    case PickleOp::kTuple3:
      return Tuple(3);
    default:
      return Error(
          absl::StrFormat("has opcode 0x%02x, which is not allowed", static_cast<int>(op)));
  }
}

}  // namespace

absl::StatusOr<Pickle> ReadPickle(absl::string_view data) { return Reader(data).Read(); }

}  // namespace ckptd
