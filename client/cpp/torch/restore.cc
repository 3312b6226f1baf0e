#include "client/cpp/torch/restore.h"

#include <ATen/ATen.h>
#include <caffe2/serialize/inline_container.h>
#include <caffe2/serialize/read_adapter_interface.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "client/cpp/torch/dtype.h"
#include "plugins/torch/pickle/reader.h"
#include "plugins/torch/read/tensor_table.h"
#include "proto/status/status_macros.h"

namespace ckptd {
namespace {

using Kind = PickleNode::Kind;

// Deeper nesting could overflow the stack, here or when the value is freed.
constexpr int kMaxDepth = 1000;

class FileAdapter : public caffe2::serialize::ReadAdapterInterface {
 public:
  explicit FileAdapter(const CheckpointFile& file) : file_(file) {}
  size_t size() const override { return file_.size_bytes(); }
  size_t read(uint64_t pos, void* buf, size_t n, const char* /*what*/) const override {
    if (pos >= file_.size_bytes()) return 0;
    n = std::min<size_t>(n, file_.size_bytes() - pos);
    return file_.Read(pos, buf, n).ok() ? n : 0;
  }

 private:
  const CheckpointFile& file_;
};

// A storage and how the pickle named its type; none for UntypedStorage.
struct LoadedStorage {
  c10::Storage storage;
  std::optional<c10::ScalarType> dtype;
};

class Restorer {
 public:
  Restorer(caffe2::serialize::PyTorchStreamReader& zip, const Pickle& pickle)
      : zip_(zip), done_(pickle.nodes.size()), started_(pickle.nodes.size()) {}

  absl::StatusOr<c10::IValue> Value(const PickleNode& node);

 private:
  absl::Status Error(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat("checkpoint", place_, " ", what));
  }

  absl::StatusOr<c10::IValue> Part(const std::string& name, const PickleNode& node);
  absl::StatusOr<c10::IValue> Make(const PickleNode& node);
  absl::StatusOr<c10::IValue> List(const PickleNode& node);
  absl::StatusOr<c10::IValue> Dict(const PickleNode& node);
  absl::StatusOr<c10::IValue> Tuple(const PickleNode& node);
  absl::StatusOr<c10::IValue> Call(const PickleNode& node);
  absl::StatusOr<c10::IValue> Tensor(const PickleNode& call, bool v3);
  absl::StatusOr<c10::IValue> Parameter(const PickleNode& call);
  absl::StatusOr<c10::IValue> Device(const PickleNode& call);
  absl::StatusOr<c10::IValue> Bytes(const PickleNode& call);
  absl::StatusOr<LoadedStorage> Storage(const PickleNode& node);
  absl::StatusOr<c10::Storage> Record(const std::string& key, int64_t size_bytes);
  absl::StatusOr<std::vector<int64_t>> Ints(const PickleNode& node);

  // The arguments of a call: at least `least` and at most `most`.
  absl::StatusOr<std::vector<PickleNode*>> Arguments(const PickleNode& call, size_t least,
                                                     size_t most);

  caffe2::serialize::PyTorchStreamReader& zip_;
  std::vector<std::optional<c10::IValue>> done_;  // By PickleNode::index.
  std::vector<bool> started_;
  std::unordered_map<std::string, c10::Storage> storages_;
  std::string place_;  // Of the present value: "[model][weight]".
  int depth_ = 0;
};

absl::StatusOr<c10::IValue> Restorer::Part(const std::string& name, const PickleNode& node) {
  const size_t length = place_.size();
  absl::StrAppend(&place_, "[", name, "]");
  absl::StatusOr<c10::IValue> value = Value(node);
  if (value.ok()) place_.resize(length);
  return value;
}

absl::StatusOr<c10::IValue> Restorer::Value(const PickleNode& node) {
  if (done_[node.index].has_value()) return *done_[node.index];
  if (started_[node.index]) return Error("holds a tuple or a call that contains itself");
  if (++depth_ > kMaxDepth) return Error("is nested too deeply");
  started_[node.index] = true;
  CKPTD_ASSIGN_OR_RETURN(c10::IValue value, Make(node));
  done_[node.index] = value;
  --depth_;
  return value;
}

absl::StatusOr<c10::IValue> Restorer::Make(const PickleNode& node) {
  switch (node.kind) {
    case Kind::kNone:
      return c10::IValue();
    case Kind::kBool:
      return c10::IValue(node.integer != 0);
    case Kind::kInt:
      return c10::IValue(node.integer);
    case Kind::kFloat:
      return c10::IValue(node.number);
    case Kind::kBigInt:
      return Error("is an integer of more than 64 bits, which an IValue cannot hold");
    case Kind::kString:
    case Kind::kBytes:
      return c10::IValue(node.text);
    case Kind::kTuple:
      return Tuple(node);
    case Kind::kList:
      return List(node);
    case Kind::kDict:
      return Dict(node);
    case Kind::kCall:
      return Call(node);
    case Kind::kSet:
    case Kind::kFrozenSet:
      return Error("is a set, which an IValue cannot hold");
    case Kind::kGlobal:
      return Error(
          absl::StrCat("is `", absl::CHexEscape(node.text), "`, which an IValue cannot hold"));
    case Kind::kPersistent:
      return Error("is a storage without a tensor, which an IValue cannot hold");
  }
  return Error("is of an unknown kind");
}

absl::StatusOr<c10::IValue> Restorer::Tuple(const PickleNode& node) {
  std::vector<c10::IValue> items;
  for (size_t i = 0; i < node.items.size(); ++i) {
    CKPTD_ASSIGN_OR_RETURN(items.emplace_back(), Part(absl::StrCat(i), *node.items[i]));
  }
  return c10::IValue(c10::ivalue::Tuple::create(std::move(items)));
}

absl::StatusOr<c10::IValue> Restorer::List(const PickleNode& node) {
  c10::impl::GenericList list(c10::AnyType::get());
  done_[node.index] = list;  // A list may contain itself.
  for (size_t i = 0; i < node.items.size(); ++i) {
    CKPTD_ASSIGN_OR_RETURN(c10::IValue item, Part(absl::StrCat(i), *node.items[i]));
    list.push_back(std::move(item));
  }
  return c10::IValue(list);
}

absl::StatusOr<c10::IValue> Restorer::Dict(const PickleNode& node) {
  c10::impl::GenericDict dict(c10::AnyType::get(), c10::AnyType::get());
  done_[node.index] = dict;
  for (size_t i = 0; i + 1 < node.items.size(); i += 2) {
    CKPTD_ASSIGN_OR_RETURN(c10::IValue key, Value(*node.items[i]));
    if (!key.isString() && !key.isInt() && !key.isBool() && !key.isDouble()) {
      return Error(absl::StrCat("has a key that is a ", key.tagKind(),
                                "; an IValue can only have numbers and strings"));
    }
    const std::string name = key.isString() ? absl::Utf8SafeCHexEscape(key.toStringRef())
                             : key.isInt()  ? absl::StrCat(key.toInt())
                                            : "?";
    CKPTD_ASSIGN_OR_RETURN(c10::IValue value, Part(name, *node.items[i + 1]));
    dict.insert_or_assign(std::move(key), std::move(value));
  }
  return c10::IValue(dict);
}

absl::StatusOr<std::vector<PickleNode*>> Restorer::Arguments(const PickleNode& call, size_t least,
                                                             size_t most) {
  const std::vector<PickleNode*>& arguments = call.argument->items;
  const std::string function = absl::CHexEscape(call.function->text);
  if (arguments.size() < least || arguments.size() > most) {
    return Error(absl::StrCat("calls `", function, "` with ", arguments.size(), " arguments"));
  }
  if (call.state != nullptr || !call.items.empty()) {
    return Error(absl::StrCat("has attributes beside `", function, "`"));
  }
  return arguments;
}

absl::StatusOr<c10::IValue> Restorer::Call(const PickleNode& node) {
  const std::string& function = node.function->text;
  if (function == "collections OrderedDict" && node.argument->items.empty()) return Dict(node);
  if (function == "torch._utils _rebuild_tensor_v2") return Tensor(node, /*v3=*/false);
  if (function == "torch._utils _rebuild_tensor_v3") return Tensor(node, /*v3=*/true);
  if (function == "torch._utils _rebuild_parameter" ||
      function == "torch._utils _rebuild_parameter_with_state") {
    return Parameter(node);
  }
  if (function == "torch Size") {
    CKPTD_ASSIGN_OR_RETURN(std::vector<PickleNode*> arguments, Arguments(node, 1, 1));
    return Value(*arguments[0]);
  }
  if (function == "torch device") return Device(node);
  if (function == "_codecs encode" || function == "__builtin__ bytes") return Bytes(node);
  if (function == "__builtin__ complex") {
    CKPTD_ASSIGN_OR_RETURN(std::vector<PickleNode*> arguments, Arguments(node, 2, 2));
    if (arguments[0]->kind != Kind::kFloat || arguments[1]->kind != Kind::kFloat) {
      return Error("is not a complex number");
    }
    return c10::IValue(c10::complex<double>(arguments[0]->number, arguments[1]->number));
  }
  return Error(absl::StrCat("calls `", absl::CHexEscape(function),
                            "`, which is not a plain tensor or container"));
}

absl::StatusOr<c10::IValue> Restorer::Device(const PickleNode& call) {
  CKPTD_ASSIGN_OR_RETURN(std::vector<PickleNode*> arguments, Arguments(call, 1, 2));
  std::string text = arguments[0]->text;
  if (arguments.size() == 2) absl::StrAppend(&text, ":", arguments[1]->integer);
  return c10::IValue(c10::Device(text));
}

// bytes: _codecs.encode(text, "latin1"), or bytes() where they are empty.
absl::StatusOr<c10::IValue> Restorer::Bytes(const PickleNode& call) {
  CKPTD_ASSIGN_OR_RETURN(std::vector<PickleNode*> arguments, Arguments(call, 0, 2));
  if (arguments.empty()) return c10::IValue(std::string());
  if (arguments.size() != 2 || arguments[1]->text != "latin1") return Error("is not bytes");
  std::string bytes;
  const std::string& text = arguments[0]->text;
  for (size_t i = 0; i < text.size(); ++i) {
    auto c = static_cast<uint8_t>(text[i]);
    if (c >= 0x80) {  // U+0080 to U+00FF in UTF-8.
      if ((c != 0xC2 && c != 0xC3) || ++i == text.size()) return Error("is not latin1 text");
      c = static_cast<uint8_t>((c & 3) << 6 | (static_cast<uint8_t>(text[i]) & 0x3F));
    }
    bytes.push_back(static_cast<char>(c));
  }
  return c10::IValue(bytes);
}

absl::StatusOr<c10::Storage> Restorer::Record(const std::string& key, int64_t size_bytes) {
  if (const auto it = storages_.find(key); it != storages_.end()) {
    if (static_cast<int64_t>(it->second.nbytes()) == size_bytes) return it->second;
    return Error(absl::StrCat("gives storage ", absl::CHexEscape(key), " two sizes"));
  }
  const std::string record = absl::StrCat("data/", key);
  if (!zip_.hasRecord(record)) {
    return Error(absl::StrCat("needs record ", absl::CHexEscape(record), ", which is missing"));
  }
  c10::DataPtr data;
  size_t record_bytes = 0;
  std::tie(data, record_bytes) = zip_.getRecord(record);
  if (record_bytes != static_cast<size_t>(size_bytes)) {
    return Error(absl::StrCat("needs ", size_bytes, " bytes of record ", absl::CHexEscape(record),
                              ", which has ", record_bytes));
  }
  c10::Storage storage(c10::Storage::use_byte_size_t(), size_bytes, std::move(data),
                       /*allocator=*/nullptr, /*resizable=*/false);
  storages_.emplace(key, storage);
  return storage;
}

// ('storage', class, key, location, number of elements)
absl::StatusOr<LoadedStorage> Restorer::Storage(const PickleNode& node) {
  const PickleNode* id = node.argument;
  if (node.kind != Kind::kPersistent || id->kind != Kind::kTuple || id->items.size() != 5 ||
      id->items[0]->text != "storage" || id->items[1]->kind != Kind::kGlobal ||
      id->items[2]->kind != Kind::kString || id->items[4]->kind != Kind::kInt) {
    return Error("has no storage");
  }
  if (id->items[3]->text == "meta") return Error("is on the meta device: it has no data");
  LoadedStorage loaded;
  int64_t itemsize = 1;
  absl::string_view type = id->items[1]->text;
  if (type != "torch.storage UntypedStorage") {
    if (absl::ConsumePrefix(&type, "torch ")) loaded.dtype = DtypeByStorageClass(std::string(type));
    if (!loaded.dtype.has_value()) {
      return Error(absl::StrCat("has a storage of type `", absl::CHexEscape(id->items[1]->text),
                                "`, which is not known here"));
    }
    itemsize = static_cast<int64_t>(c10::elementSize(*loaded.dtype));
  }
  const int64_t numel = id->items[4]->integer;
  int64_t size_bytes = 0;
  if (numel < 0 || __builtin_mul_overflow(numel, itemsize, &size_bytes)) {
    return Error(absl::StrCat("has a storage of ", numel, " elements"));
  }
  CKPTD_ASSIGN_OR_RETURN(loaded.storage, Record(id->items[2]->text, size_bytes));
  return loaded;
}

absl::StatusOr<std::vector<int64_t>> Restorer::Ints(const PickleNode& node) {
  if (node.kind != Kind::kTuple) return Error("has sizes or strides that are no tuple");
  std::vector<int64_t> values;
  for (const PickleNode* item : node.items) {
    if (item->kind != Kind::kInt || item->integer < 0) {
      return Error("has sizes or strides that are no numbers");
    }
    values.push_back(item->integer);
  }
  return values;
}

absl::StatusOr<c10::IValue> Restorer::Tensor(const PickleNode& call, bool v3) {
  CKPTD_ASSIGN_OR_RETURN(std::vector<PickleNode*> arguments,
                         Arguments(call, v3 ? 7 : 6, v3 ? 8 : 7));
  CKPTD_ASSIGN_OR_RETURN(LoadedStorage loaded, Storage(*arguments[0]));
  if (v3) {
    absl::string_view name = arguments[6]->text;
    absl::ConsumePrefix(&name, "torch ");
    loaded.dtype = DtypeByName(std::string(name));
    if (!loaded.dtype.has_value()) {
      return Error(absl::StrCat("is of dtype ", absl::CHexEscape(name),
                                ", which this LibTorch does not have"));
    }
  }
  if (!loaded.dtype.has_value()) return Error("has a storage without a type");
  const int64_t offset = arguments[1]->integer;
  CKPTD_ASSIGN_OR_RETURN(std::vector<int64_t> sizes, Ints(*arguments[2]));
  CKPTD_ASSIGN_OR_RETURN(std::vector<int64_t> strides, Ints(*arguments[3]));
  const auto itemsize = static_cast<int64_t>(c10::elementSize(*loaded.dtype));
  if (!FitsStorage(offset, sizes, strides,
                   loaded.storage.nbytes() / static_cast<size_t>(itemsize))) {
    return Error("is a tensor that reaches beyond its storage");
  }
  at::Tensor tensor =
      at::empty({0}, at::TensorOptions(*loaded.dtype)).set_(loaded.storage, offset, sizes, strides);
  const size_t metadata = v3 ? 7 : 6;
  if (arguments.size() > metadata && arguments[metadata]->kind == Kind::kDict) {
    const std::vector<PickleNode*>& items = arguments[metadata]->items;
    for (size_t i = 0; i + 1 < items.size(); i += 2) {
      if (items[i]->text == "conj") tensor._set_conj(items[i + 1]->integer != 0);
      if (items[i]->text == "neg") tensor._set_neg(items[i + 1]->integer != 0);
    }
  }
  if (arguments[4]->integer != 0) tensor.set_requires_grad(true);
  return c10::IValue(tensor);
}

// (tensor, requires_grad, hooks[, attributes])
absl::StatusOr<c10::IValue> Restorer::Parameter(const PickleNode& call) {
  CKPTD_ASSIGN_OR_RETURN(std::vector<PickleNode*> arguments, Arguments(call, 3, 4));
  CKPTD_ASSIGN_OR_RETURN(c10::IValue value, Value(*arguments[0]));
  if (!value.isTensor()) return Error("is a parameter without a tensor");
  // As nn.Parameter does: another tensor on the same memory.
  at::Tensor parameter = value.toTensor().detach();
  parameter.set_requires_grad(arguments[1]->integer != 0);
  return c10::IValue(parameter);
}

absl::StatusOr<c10::IValue> Restore(const CheckpointFile& file) {
  std::array<char, 4> magic = {};
  if (!file.Read(0, magic.data(), magic.size()).ok() ||
      std::memcmp(magic.data(), "PK\3\4", magic.size()) != 0) {
    return absl::InvalidArgumentError(
        "is not a zip file, as torch.save has written them since torch 1.6");
  }
  caffe2::serialize::PyTorchStreamReader zip(std::make_shared<FileAdapter>(file));
  if (zip.hasRecord("byteorder")) {
    auto [data, size] = zip.getRecord("byteorder");
    if (absl::string_view(static_cast<const char*>(data.get()), size) != "little") {
      return absl::InvalidArgumentError("was not written on a little-endian machine");
    }
  }
  if (!zip.hasRecord("data.pkl")) {
    return absl::InvalidArgumentError("has no data.pkl: torch.save did not write it");
  }
  auto [data, size] = zip.getRecord("data.pkl");
  CKPTD_ASSIGN_OR_RETURN(Pickle pickle, ReadPickle({static_cast<const char*>(data.get()), size}));
  return Restorer(zip, pickle).Value(*pickle.root);
}

}  // namespace

absl::StatusOr<c10::IValue> RestoreObject(const CheckpointFile& file) {
  try {
    absl::StatusOr<c10::IValue> value = Restore(file);
    if (value.ok()) return value;
    return absl::Status(value.status().code(),
                        absl::StrCat(file.path(), ": ", value.status().message()));
  } catch (const c10::Error& error) {  // LibTorch throws; its what() ends in a stack trace.
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": LibTorch cannot read it: ", error.what_without_backtrace()));
  } catch (const std::exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": LibTorch cannot read it: ", error.what()));
  }
}

}  // namespace ckptd
