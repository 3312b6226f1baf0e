#include "tests/server/queue/model.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"

namespace ckptd {
namespace {

using Kind = QueueModel::Op::Kind;

std::string FolderOf(const std::string& path) {
  return path.substr(0, path.find('/') == std::string::npos ? 0 : path.rfind('/'));
}

bool IsAtOrBelow(const std::string& path, const std::string& folder) {
  return path == folder || absl::StartsWith(path, folder + "/");
}

// Whether the later of two operations has to wait for the earlier.
bool Conflict(const QueueModel::Op& before, const QueueModel::Op& after) {
  if (before.kind == Kind::kLoad && after.kind == Kind::kLoad) return false;
  if (before.path == after.path) return true;
  if (before.kind == Kind::kRemove && IsAtOrBelow(after.path, before.path)) return true;
  if (after.kind != Kind::kRemove) return false;
  return IsAtOrBelow(before.path, after.path) ||
         (before.kind == Kind::kSave && before.job == after.job);
}

}  // namespace

void QueueModel::TouchFolders(const std::string& path) {
  for (std::string dir = FolderOf(path); !dir.empty(); dir = FolderOf(dir)) folders_.insert(dir);
}

void QueueModel::Supersede(const std::string& newer, const std::string& path) {
  ops_.remove_if([&](const Op& op) {
    if (op.kind != Kind::kSave || op.path != path) return false;
    Save& save = saves_.at(op.name);
    if (save.state != v1::Save::QUEUED) return false;
    save.state = v1::Save::SUPERSEDED;
    save.reason = "SUPERSEDED";
    save.newer = newer;
    return true;
  });
  StartWhatMayRun();
}

void QueueModel::Commit(const std::string& name) {
  Save& save = saves_.at(name);
  save.state = v1::Save::QUEUED;
  newest_[JobOf(name)] = name;
  ops_.push_back({Kind::kSave, JobOf(name), name, save.path});
  StartWhatMayRun();
}

void QueueModel::Drop(const std::string& name, const std::string& reason) {
  saves_.at(name).state = v1::Save::CANCELLED;
  saves_.at(name).reason = reason;
}

void QueueModel::Cancel(const std::string& name) {
  if (saves_.at(name).state == v1::Save::STAGING) return Drop(name, "CANCELLED_BY_REQUEST");
  for (Op* op : Pending()) {
    if (op->kind != Kind::kSave || op->name != name) continue;
    if (op->running && !op->delayed) {
      op->cancelled = true;
      return;
    }
    Drop(name, "CANCELLED_BY_REQUEST");
    return Forget(op);
  }
}

bool QueueModel::WillBeInAFolder(const std::string& path) {
  const std::vector<Op*> pending = Pending();
  return folders_.count(FolderOf(path)) != 0 &&
         std::none_of(pending.begin(), pending.end(), [&](const Op* op) {
           return op->kind == Kind::kRemove && op->path != path && IsAtOrBelow(path, op->path);
         });
}

void QueueModel::Remove(const std::string& job, const std::string& path) {
  ops_.push_back({Kind::kRemove, job, newest_[job], path});
  StartWhatMayRun();
}

QueueModel::Op* QueueModel::BeginLoad(const std::string& path) {
  ops_.push_back({Kind::kLoad, "", "", path, /*running=*/true});
  return &ops_.back();
}

void QueueModel::End(Op* op, const std::string& reason) {
  if (op->kind == Kind::kRemove) {
    if (reason.empty()) {
      const auto goes = [&](const std::string& path) { return IsAtOrBelow(path, op->path); };
      std::erase_if(files_, [&](const auto& file) { return goes(file.first); });
      std::erase_if(folders_, goes);
    } else {
      failed_removals_[op->job].insert(op->path);
    }
    return Forget(op);
  }
  Save& save = saves_.at(op->name);
  if (!reason.empty()) {
    save.state = v1::Save::FAILED;
    save.reason = reason;
  } else if (op->cancelled) {
    Drop(op->name, "CANCELLED_BY_REQUEST");
  } else {
    save.state = v1::Save::SUCCEEDED;
    files_[save.path] = save.content;
    TouchFolders(save.path);
  }
  Forget(op);
}

void QueueModel::EndDelays() {
  for (Op& op : ops_) op.delayed = false;
}

void QueueModel::Restart(bool killed) {
  ops_.remove_if([&](const Op& op) {
    if (op.cancelled && !killed) Drop(op.name, "CANCELLED_BY_REQUEST");
    return op.kind == Kind::kLoad || (op.cancelled && !killed);
  });
  std::erase_if(saves_, [](const auto& s) { return s.second.state == v1::Save::STAGING; });
  for (Op& op : ops_) {
    op.running = op.delayed = op.cancelled = false;
    op.behind = nullptr;
    if (op.kind == Kind::kSave) saves_.at(op.name).state = v1::Save::QUEUED;
  }
  StartWhatMayRun();
}

// ---- What may run ----------------------------------------------------------------------------

std::vector<const QueueModel::Op*> QueueModel::Before(const Op& op) const {
  std::vector<const Op*> before;
  for (const Op& other : ops_) {
    if (&other == &op) break;
    if (Conflict(other, op)) before.push_back(&other);
  }
  if (op.behind != nullptr) before.push_back(op.behind);
  return before;
}

bool QueueModel::WaitsFor(const Op& op, const Op& other) const {
  const std::vector<const Op*> before = Before(op);
  return std::any_of(before.begin(), before.end(), [&](const Op* earlier) {
    return earlier == &other || WaitsFor(*earlier, other);
  });
}

void QueueModel::StartWhatMayRun() {
  for (Op* op : Pending()) {
    if (op->running || !Before(*op).empty()) continue;
    if (op->kind == Kind::kRemove) {
      if (!StartRemoval(op)) return StartWhatMayRun();
      continue;
    }
    op->running = true;
    saves_.at(op->name).state = v1::Save::PERSISTING;
  }
}

// A removal needs what its job saved before it to be durable, or what that gave way to. False where
// it has ended.
bool QueueModel::StartRemoval(Op* op) {
  // Found anew each time: the newer one may be gone after a restart.
  std::string name = op->name;
  while (!name.empty() && saves_.at(name).state == v1::Save::SUPERSEDED &&
         saves_.count(saves_.at(name).newer) != 0) {
    name = saves_.at(name).newer;
  }
  const bool needs = !name.empty() && !IsAtOrBelow(saves_.at(name).path, op->path);
  const Op* newest = needs ? FindSave(name) : nullptr;
  if (newest != nullptr && !WaitsFor(*newest, *op)) {
    op->behind = newest;
  } else if (needs && saves_.at(name).state != v1::Save::SUCCEEDED) {
    End(op, "SAVE_NOT_DURABLE");
    return false;
  } else {
    op->running = true;
  }
  return true;
}

void QueueModel::Forget(const Op* op) {
  for (Op& other : ops_) {
    if (other.behind == op) other.behind = nullptr;
  }
  ops_.remove_if([&](const Op& other) { return &other == op; });
  StartWhatMayRun();
}

// ---- What is to be seen ----------------------------------------------------------------------

const QueueModel::Op* QueueModel::FindSave(const std::string& name) const {
  const auto it = std::find_if(ops_.begin(), ops_.end(), [&](const Op& op) {
    return op.kind == Kind::kSave && op.name == name;
  });
  return it == ops_.end() ? nullptr : &*it;
}

std::vector<QueueModel::Op*> QueueModel::Pending() {
  std::vector<Op*> pending;
  for (Op& op : ops_) {
    if (op.kind != Kind::kLoad) pending.push_back(&op);
  }
  return pending;
}

std::vector<QueueModel::Op*> QueueModel::Running() {
  std::vector<Op*> running = Pending();
  std::erase_if(running, [](const Op* op) { return !op->running || op->delayed; });
  return running;
}

bool QueueModel::AnyDelayed() const {
  return std::any_of(ops_.begin(), ops_.end(), [](const Op& op) { return op.delayed; });
}

int QueueModel::Blockers(const std::string& path) const {
  const Op load = {Kind::kLoad, "", "", path};
  return static_cast<int>(Before(load).size());
}

size_t QueueModel::ImagesInUse() const {
  return static_cast<size_t>(std::count_if(saves_.begin(), saves_.end(), [](const auto& item) {
    const v1::Save::State state = item.second.state;
    return state == v1::Save::STAGING || state == v1::Save::QUEUED || state == v1::Save::PERSISTING;
  }));
}

}  // namespace ckptd
