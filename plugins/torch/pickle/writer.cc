#include "plugins/torch/pickle/writer.h"

#include <bit>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"

namespace ckptd {

PickleWriter::PickleWriter() {
  Op(PickleOp::kProto);
  Fixed(2, 1);
}

void PickleWriter::Op(PickleOp op) { out_.push_back(static_cast<char>(op)); }

void PickleWriter::Fixed(uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) out_.push_back(static_cast<char>(value >> (8 * i)));
}

void PickleWriter::PutNext() {
  const uint32_t index = next_memo_++;
  Op(index < 256 ? PickleOp::kBinPut : PickleOp::kLongBinPut);
  Fixed(index, index < 256 ? 1 : 4);
}

void PickleWriter::GetIndex(uint32_t index) {
  Op(index < 256 ? PickleOp::kBinGet : PickleOp::kLongBinGet);
  Fixed(index, index < 256 ? 1 : 4);
}

void PickleWriter::Put(const void* identity) {
  if (identity != nullptr) objects_[identity] = next_memo_;
  PutNext();
}

bool PickleWriter::Get(const void* identity) {
  const auto it = objects_.find(identity);
  if (it == objects_.end()) return false;
  GetIndex(it->second);
  return true;
}

void PickleWriter::None() { Op(PickleOp::kNone); }

void PickleWriter::Bool(bool value) { Op(value ? PickleOp::kNewTrue : PickleOp::kNewFalse); }

void PickleWriter::Int(int64_t value) {
  if (value >= 0 && value < 256) {
    Op(PickleOp::kBinInt1);
    Fixed(static_cast<uint64_t>(value), 1);
  } else if (value >= 0 && value < 65536) {
    Op(PickleOp::kBinInt2);
    Fixed(static_cast<uint64_t>(value), 2);
  } else if (value >= std::numeric_limits<int32_t>::min() &&
             value <= std::numeric_limits<int32_t>::max()) {
    Op(PickleOp::kBinInt);
    Fixed(static_cast<uint64_t>(value), 4);
  } else {
    int bytes = 8;  // As few as keep the sign.
    while (value >> (8 * (bytes - 1) - 1) == value >> 63) --bytes;
    Op(PickleOp::kLong1);
    Fixed(static_cast<uint64_t>(bytes), 1);
    Fixed(static_cast<uint64_t>(value), bytes);
  }
}

void PickleWriter::Float(double value) {
  Op(PickleOp::kBinFloat);
  Fixed(__builtin_bswap64(std::bit_cast<uint64_t>(value)), 8);
}

void PickleWriter::String(const std::string& utf8) {
  const auto [it, is_new] = strings_.try_emplace(utf8, next_memo_);
  if (!is_new) return GetIndex(it->second);
  Op(PickleOp::kBinUnicode);
  Fixed(utf8.size(), 4);
  out_.append(utf8);
  PutNext();
}

void PickleWriter::Global(const std::string& module, const std::string& name) {
  const auto [it, is_new] = globals_.try_emplace(absl::StrCat(module, "\n", name), next_memo_);
  if (!is_new) return GetIndex(it->second);
  Op(PickleOp::kGlobal);
  absl::StrAppend(&out_, module, "\n", name, "\n");
  PutNext();
}

void PickleWriter::EmptyList(const void* identity) {
  Op(PickleOp::kEmptyList);
  Put(identity);
}

void PickleWriter::EmptyDict(const void* identity) {
  Op(PickleOp::kEmptyDict);
  Put(identity);
}

void PickleWriter::Tuple(int size) {
  switch (size) {
    case 0:
      return Op(PickleOp::kEmptyTuple);
    case 1:
      return Op(PickleOp::kTuple1);
    case 2:
      return Op(PickleOp::kTuple2);
    case 3:
      return Op(PickleOp::kTuple3);
    default:
      return Op(PickleOp::kTuple);
  }
}

std::string PickleWriter::Finish() {
  Op(PickleOp::kStop);
  return std::exchange(out_, {});
}

}  // namespace ckptd
