#include "server/queue/path_order.h"

#include <algorithm>
#include <set>

#include "absl/strings/match.h"

namespace ckptd {

void PathOrder::Add(Operation* op, const std::vector<Operation*>& also) {
  op->seq = next_seq_++;
  std::set<Operation*> before(also.begin(), also.end());
  auto add_active = [&](const std::vector<Operation*>& ops, bool removes_only) {
    for (Operation* other : ops) {
      const bool both_load =
          op->kind == Operation::Kind::kLoad && other->kind == Operation::Kind::kLoad;
      if (both_load || (removes_only && other->kind != Operation::Kind::kRemove)) continue;
      before.insert(other);
    }
  };
  for (const std::string& key : op->keys) {
    for (size_t slash = key.find('/', 1); slash != std::string::npos;
         slash = key.find('/', slash + 1)) {
      auto above = active_.find(key.substr(0, slash));
      if (above != active_.end()) add_active(above->second, /*removes_only=*/true);
    }
    auto same = active_.find(key);
    if (same != active_.end()) add_active(same->second, /*removes_only=*/false);
    if (op->kind != Operation::Kind::kRemove) continue;
    const std::string below = key + "/";
    for (auto it = active_.lower_bound(below);
         it != active_.end() && absl::StartsWith(it->first, below); ++it) {
      add_active(it->second, /*removes_only=*/false);
    }
  }
  for (Operation* other : before) {
    other->dependents.push_back(op);
    ++op->blockers;
  }
  for (const std::string& key : op->keys) active_[key].push_back(op);
}

bool PathOrder::IsBehind(const Operation* op, const Operation* other) {
  std::set<const Operation*> behind = {other};
  std::vector<const Operation*> next = {other};
  while (!next.empty()) {
    const Operation* before = next.back();
    next.pop_back();
    for (const Operation* dependent : before->dependents) {
      if (dependent == op) return true;
      if (behind.insert(dependent).second) next.push_back(dependent);
    }
  }
  return false;
}

std::vector<Operation*> PathOrder::End(Operation* op) {
  for (const std::string& key : op->keys) {
    auto it = active_.find(key);
    if (it == active_.end()) continue;
    std::vector<Operation*>& ops = it->second;
    ops.erase(std::remove(ops.begin(), ops.end(), op), ops.end());
    if (ops.empty()) active_.erase(it);
  }
  // Ended while it waits: nobody may hold a pointer to it any more. Whatever waits for it waits for
  // all that was before it as well, so no order is lost.
  if (op->blockers > 0) {
    for (auto& [key, ops] : active_) {
      for (Operation* other : ops) {
        auto& waiting = other->dependents;
        waiting.erase(std::remove(waiting.begin(), waiting.end(), op), waiting.end());
      }
    }
  }
  std::vector<Operation*> runnable;
  for (Operation* dependent : op->dependents) {
    if (--dependent->blockers == 0) runnable.push_back(dependent);
  }
  op->dependents.clear();
  return runnable;
}

}  // namespace ckptd
