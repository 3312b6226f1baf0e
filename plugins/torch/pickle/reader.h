#ifndef CKPTD_PLUGINS_TORCH_PICKLE_READER_H_
#define CKPTD_PLUGINS_TORCH_PICKLE_READER_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ckptd {

// One value of a pickle. Nothing is interpreted: calls and globals stay what they are, as data.
struct PickleNode {
  enum class Kind {
    kNone,
    kBool,        // integer
    kInt,         // integer
    kBigInt,      // text: more than 64 bits, two's complement, little-endian
    kFloat,       // number
    kString,      // text, UTF-8 in files that nobody has changed
    kBytes,       // text
    kTuple,       // items
    kList,        // items
    kDict,        // items: key, value, key, value, ...
    kSet,         // items
    kFrozenSet,   // items
    kGlobal,      // text: "module name"
    kCall,        // function, argument, a tuple; then items, added to the result, and state
    kPersistent,  // argument
  };

  Kind kind = Kind::kNone;
  size_t index = 0;  // Position in Pickle::nodes.
  int64_t integer = 0;
  double number = 0;
  std::string text;
  std::vector<PickleNode*> items;
  bool keyed = false;  // Of kCall: items are those of a dict.
  PickleNode* function = nullptr;
  PickleNode* argument = nullptr;
  PickleNode* state = nullptr;
};

// What a pickle says. Shared and recursive objects are shared and recursive nodes.
struct Pickle {
  std::deque<PickleNode> nodes;  // Owns them; addresses do not change.
  const PickleNode* root = nullptr;
};

// Reads a pickle of protocol 2 to 5 with the opcodes of PickleOp. Runs nothing that the pickle
// names. INVALID_ARGUMENT, with the position, for anything else: another opcode, another protocol,
// a truncated or inconsistent stream. Uses memory in proportion to the length of `data`.
//
// What NEWOBJ_EX makes is a kCall whose argument is a tuple of its arguments and its keywords.
absl::StatusOr<Pickle> ReadPickle(absl::string_view data);

}  // namespace ckptd

#endif  // CKPTD_PLUGINS_TORCH_PICKLE_READER_H_
