#ifndef CKPTD_CLIENT_CPP_CONVERT_STATE_H_
#define CKPTD_CLIENT_CPP_CONVERT_STATE_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace ckptd {

// A tensor, row-major and without gaps.
struct StateTensor {
  std::string dtype;  // as torch names it: "float32"
  std::vector<int64_t> shape;
  const void* data = nullptr;
  uint64_t size_bytes = 0;
};

// A value of a state, with all that is in it.
struct StateNode {
  enum class Kind {
    kTensor,  // tensor
    kNone,
    kBool,    // integer
    kInt,     // integer
    kFloat,   // number
    kString,  // text
    kDict,    // keys, parts
    kOrderedDict,
    kList,  // parts
    kTuple,
  };

  bool has_keys() const { return kind == Kind::kDict || kind == Kind::kOrderedDict; }
  bool has_parts() const { return has_keys() || kind == Kind::kList || kind == Kind::kTuple; }

  Kind kind = Kind::kNone;
  std::string text;
  int64_t integer = 0;
  double number = 0;
  size_t tensor = 0;  // in State::tensors; tied tensors have the same
  std::vector<std::string> keys;
  std::vector<StateNode> parts;
};

// What a checkpoint holds, in no format. The tensors' bytes lie in the file that it was read from,
// or in `buffers`.
struct State {
  StateNode root;
  std::vector<StateTensor> tensors;
  std::deque<std::string> buffers;
  // What a safetensors file notes beside, for people.
  std::map<std::string, std::string> metadata;
};

// FAILED_PRECONDITION with reason NOT_CONVERTIBLE: "`object`: `why`".
absl::Status NotConvertible(absl::string_view object, absl::string_view why);

}  // namespace ckptd

#endif  // CKPTD_CLIENT_CPP_CONVERT_STATE_H_
