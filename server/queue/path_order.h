#ifndef CKPTD_SERVER_QUEUE_PATH_ORDER_H_
#define CKPTD_SERVER_QUEUE_PATH_ORDER_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace ckptd {

// Something that takes effect at one or more paths: a save, a load or a removal.
struct Operation {
  enum class Kind { kSave, kLoad, kRemove };

  explicit Operation(Kind operation_kind) : kind(operation_kind) {}
  virtual ~Operation() = default;
  Operation(const Operation&) = delete;
  Operation& operator=(const Operation&) = delete;

  const Kind kind;
  // Set by PathOrder::Add; later operations have larger ones.
  uint64_t seq = 0;
  // Canonical paths.
  std::vector<std::string> keys;
  // How many operations it still has to wait for; it may run at 0.
  int blockers = 0;
  // Those that wait for it.
  std::vector<Operation*> dependents;
};

// One order for each path: an operation runs when everything that was added before it and touches
// the same path has ended. A removal touches all that is below its path; loads do not wait for each
// other. Not thread-safe; does not own the operations, which must stay alive from Add to End.
class PathOrder {
 public:
  // Puts `op` behind everything it conflicts with, and behind `also`, which must be active. It may
  // run at once if its `blockers` is then 0.
  void Add(Operation* op, const std::vector<Operation*>& also);

  // The next Add gives out `seq`, which must be larger than those before.
  void ContinueAt(uint64_t seq) { next_seq_ = seq; }

  // Whether `op` waits for `other`, or for something that does. Both are active.
  static bool IsBehind(const Operation* op, const Operation* other);

  // Makes `op`, which is active and has nothing to wait for, wait for `other`, which is active,
  // too, and not behind it: neither would ever run.
  static void Wait(Operation* op, Operation* other) {
    other->dependents.push_back(op);
    ++op->blockers;
  }

  // Ends `op`, whether it ran or not. Returns those that may run now.
  std::vector<Operation*> End(Operation* op);

 private:
  uint64_t next_seq_ = 1;
  std::map<std::string, std::vector<Operation*>> active_;
};

}  // namespace ckptd

#endif  // CKPTD_SERVER_QUEUE_PATH_ORDER_H_
