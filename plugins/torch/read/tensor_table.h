#ifndef CKPTD_PLUGINS_TORCH_READ_TENSOR_TABLE_H_
#define CKPTD_PLUGINS_TORCH_READ_TENSOR_TABLE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "plugins/torch/pickle/reader.h"
#include "plugins/torch/read/torch_tensor.h"

namespace ckptd {

// A value of the object that was saved.
struct TorchValue {
  enum class Kind {
    // Leaves.
    kTensor,
    kNone,
    kBool,
    kInt,
    kFloat,
    kString,
    kOther,  // of another kind that torch.load(weights_only=True) takes; `what` names it

    // Containers. Their parts follow.
    kDict,
    kOrderedDict,
    kList,
    kTuple,   // torch.Size, too
    kObject,  // of a class, or what a function returns, that is not known here; `what` names it.
              // Its parts are what was found in it.
  };

  Kind kind = Kind::kNone;
  // In TorchTable::values: the container that it is in; 0 for the first, which is in none.
  size_t parent = 0;
  size_t depth = 0;  // how many containers it is in
  // Its key, in a container with keys; null in one without, where it is at `position`.
  const PickleNode* key = nullptr;
  size_t position = 0;
  // It as the pickle has it, with the number or text of a leaf.
  const PickleNode* node = nullptr;
  size_t tensor = 0;  // of kTensor: in TorchTable::tensors
  std::string what;   // "argparse.Namespace", "torch.device", "set"
};

// What is in a pickle of torch.save. Refers to the Pickle it was made of.
struct TorchTable {
  // Each before its parts, parts in their order. What is in two places is here twice.
  std::vector<TorchValue> values;
  std::vector<TorchTensor> tensors;  // one for each value that is one
  // Classes and functions that were not known, in the order of the alphabet: "argparse.Namespace".
  // What they would have made of their parts nobody can tell without running them.
  std::vector<std::string> unknown;

  // The keys that lead to a value, with dots between them: "model.weight"; empty for the first.
  std::string PathOf(size_t value) const;
};

// Tells what is in a pickle, without running anything that it names. `max_values` is the most that
// may be in it: values that are in many places count as often, which a small pickle can do without
// end.
//
// INVALID_ARGUMENT for a pickle that torch.save does not write: a tensor that is none, or reaches
// beyond its storage, more than `max_values` values, or more than 1000 levels. Such messages have
// no object in front.
absl::StatusOr<TorchTable> ReadTorchTable(const Pickle& pickle, size_t max_values = 4'000'000);

// A key as it stands in a path: the text of a string, the digits of a number, else "True", "None",
// or "?" for a key that is a tuple or an object.
std::string KeyText(const PickleNode& key);

}  // namespace ckptd

#endif  // CKPTD_PLUGINS_TORCH_READ_TENSOR_TABLE_H_
