#ifndef CKPTD_CLIENT_CPP_PICKLE_READER_H_
#define CKPTD_CLIENT_CPP_PICKLE_READER_H_

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
    kFloat,       // number
    kString,      // text, UTF-8
    kTuple,       // items
    kList,        // items
    kDict,        // items: key, value, key, value, ...
    kSet,         // empty
    kGlobal,      // text: "module name"
    kCall,        // function, argument; then items, appended or set on the result, and state
    kPersistent,  // argument
  };

  Kind kind = Kind::kNone;
  size_t index = 0;  // Position in Pickle::nodes.
  int64_t integer = 0;
  double number = 0;
  std::string text;
  std::vector<PickleNode*> items;
  PickleNode* function = nullptr;
  PickleNode* argument = nullptr;
  PickleNode* state = nullptr;
};

// What a pickle says. Shared and recursive objects are shared and recursive nodes.
struct Pickle {
  std::deque<PickleNode> nodes;  // Owns them; addresses do not change.
  const PickleNode* root = nullptr;
};

// Reads a pickle of protocol 2 with the opcodes that torch.load(weights_only=True) takes. Runs
// nothing that the pickle names. INVALID_ARGUMENT, with the position, for anything else: another
// opcode, another protocol, a truncated or inconsistent stream. Uses memory in proportion to the
// length of `data`.
absl::StatusOr<Pickle> ReadPickle(absl::string_view data);

}  // namespace ckptd

#endif  // CKPTD_CLIENT_CPP_PICKLE_READER_H_
