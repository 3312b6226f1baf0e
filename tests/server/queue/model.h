#ifndef CKPTD_TESTS_SERVER_QUEUE_MODEL_H_
#define CKPTD_TESTS_SERVER_QUEUE_MODEL_H_

#include <list>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "ckptd/v1/checkpoint.pb.h"

namespace ckptd {

// What SaveQueue promises, without threads, files or a journal: what each path holds, what becomes
// of each save, and which work nothing holds up. Whoever drives it says when work ends, and how.
class QueueModel {
 public:
  struct Save {
    int session = 0;
    std::string path;
    std::string content;
    v1::Save::State state = v1::Save::STAGING;
    // Why it ended without being durable, and what it gave way to.
    std::string reason;
    std::string newer;
  };

  // Something that is accepted, or a load that is held, and has not ended.
  struct Op {
    enum class Kind { kSave, kLoad, kRemove };

    Kind kind = Kind::kSave;
    std::string job;
    // Of the save; for a removal, of the newest one that its job had accepted before.
    std::string name;
    std::string path;
    // A worker has it, or would if the last attempt had not failed just now.
    bool running = false;
    bool delayed = false;
    // CancelSave came when a worker had it already.
    bool cancelled = false;
    // A later save that a removal waits for all the same.
    const Op* behind = nullptr;
  };

  static std::string JobOf(const std::string& name) { return name.substr(0, name.find("/saves")); }

  // What an operation is called.
  static std::string NameOf(const Op& op) {
    return op.kind == Op::Kind::kSave ? op.name : "removal of " + op.path;
  }

  // `images`: how many fit into the budget.
  explicit QueueModel(size_t images) : images_(images) {}

  // ---- What clients do.
  void TouchFolders(const std::string& path);
  void Begin(const std::string& name, Save save) { saves_[name] = std::move(save); }
  void Supersede(const std::string& newer, const std::string& path);
  void Commit(const std::string& name);
  // Ends a save that is STAGING.
  void Drop(const std::string& name, const std::string& reason);
  void Cancel(const std::string& name);
  // Whether the folder of `path` will be there when all that is accepted is done.
  bool WillBeInAFolder(const std::string& path);
  void Remove(const std::string& job, const std::string& path);
  Op* BeginLoad(const std::string& path);
  void EndLoad(Op* load) { Forget(load); }

  // ---- What becomes of work that runs.
  // `reason`: of an error that will not pass, or empty.
  void End(Op* op, const std::string& reason);
  void Delay(Op* op) { op->delayed = true; }
  void EndDelays();
  // Another daemon takes over. `killed`: this one had no time to end what was cancelled.
  void Restart(bool killed);

  // ---- What is to be seen.
  const std::map<std::string, Save>& saves() const { return saves_; }
  const std::map<std::string, std::string>& files() const { return files_; }
  std::map<std::string, std::multiset<std::string>>& failed_removals() { return failed_removals_; }
  // Work, without loads: all of it, what a worker has, what waits for another attempt.
  std::vector<Op*> Pending();
  std::vector<Op*> Running();
  bool AnyDelayed() const;
  // How many operations a load of `path` would wait for.
  int Blockers(const std::string& path) const;
  size_t ImagesInUse() const;
  bool IsFull() const { return ImagesInUse() >= images_; }

 private:
  std::vector<const Op*> Before(const Op& op) const;
  bool WaitsFor(const Op& op, const Op& other) const;
  const Op* FindSave(const std::string& name) const;
  void StartWhatMayRun();
  bool StartRemoval(Op* op);
  void Forget(const Op* op);

  size_t images_;
  std::map<std::string, Save> saves_;
  std::map<std::string, std::string> files_;
  std::set<std::string> folders_ = {""};
  std::list<Op> ops_;  // in the order in which they were accepted
  std::map<std::string, std::string> newest_;
  std::map<std::string, std::multiset<std::string>> failed_removals_;
};

}  // namespace ckptd

#endif  // CKPTD_TESTS_SERVER_QUEUE_MODEL_H_
