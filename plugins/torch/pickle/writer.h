#ifndef CKPTD_PLUGINS_TORCH_PICKLE_WRITER_H_
#define CKPTD_PLUGINS_TORCH_PICKLE_WRITER_H_

#include <cstdint>
#include <string>
#include <unordered_map>

#include "absl/strings/string_view.h"
#include "plugins/torch/pickle/opcodes.h"

namespace ckptd {

// Writes a pickle of protocol 2 as Python's own pickler does: containers are memoized before they
// are filled, and strings and globals that come again are taken from the memo. The caller sees to
// the order of the stack.
class PickleWriter {
 public:
  PickleWriter();

  // ---- One value each.
  void None();
  void Bool(bool value);
  void Int(int64_t value);
  void Float(double value);
  void String(const std::string& utf8);
  void Global(const std::string& module, const std::string& name);

  // Begin a container; items follow, between Mark and Op(kAppends) or Op(kSetItems).
  void EmptyList(const void* identity);
  void EmptyDict(const void* identity);

  // ---- Opcodes without an argument, as they are.
  void Op(PickleOp op);
  void Mark() { Op(PickleOp::kMark); }
  // Makes a tuple of everything since Mark, or of the top one, two or three values.
  void Tuple(int size);

  // Memoizes the top value as the object at `identity`, which must stay alive and distinct until
  // the pickle is finished. Null: memoized, but never found again.
  void Put(const void* identity);

  // Writes the object that was Put under `identity`; false if there was none.
  bool Get(const void* identity);

  // Ends the pickle and returns it.
  std::string Finish();

 private:
  void Fixed(uint64_t value, int bytes);
  void PutNext();
  void GetIndex(uint32_t index);

  std::string out_;
  uint32_t next_memo_ = 0;
  std::unordered_map<const void*, uint32_t> objects_;
  std::unordered_map<std::string, uint32_t> strings_;
  std::unordered_map<std::string, uint32_t> globals_;
};

}  // namespace ckptd

#endif  // CKPTD_PLUGINS_TORCH_PICKLE_WRITER_H_
