#ifndef CKPTD_SERVER_QUEUE_WORK_LIST_H_
#define CKPTD_SERVER_QUEUE_WORK_LIST_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/queue/path_order.h"

namespace ckptd {

// An operation that a worker of the daemon runs: an accepted save or removal.
struct Work : Operation {
  using Operation::Operation;

  // The device that its target's folder is on: what may hang is shared by all on it.
  uint64_t device = 0;
  // An earlier daemon may have left something beside its target.
  bool adopted = false;
  // Somebody else has hold of it for the moment.
  bool paused = false;
  // The process that does it (backend/hosts.h), one thing at a time; empty where the daemon does.
  std::string host;
  // Attempts that have failed, and when (uptime) the first one did.
  int failures = 0;
  absl::Duration first_failure;
  // How it ended, once that is settled and only its record in the journal is missing.
  std::optional<absl::Status> outcome;
};

// Work that nothing blocks any more, in the order in which it was accepted; some of it may have to
// wait for another attempt. No device gets more than `per_device` workers, so that one whose
// storage hangs holds up nobody else; and what a host process does, which counts as a device, one.
// Not thread-safe.
class WorkList {
 public:
  explicit WorkList(int per_device) : per_device_(per_device) {}

  // Puts it in, to be run not before the uptime `due`.
  void Add(std::shared_ptr<Work> work, absl::Duration due = absl::ZeroDuration());
  // Takes it out if it is in.
  void Remove(const Work* work);
  // Whether it waits here for another attempt or its turn.
  bool Contains(const Work* work) const;

  // Takes out the oldest that may run at uptime `now`; its device is in use until Done. Null where
  // there is none.
  std::shared_ptr<Work> Take(absl::Duration now);
  void Done(const Work* work);
  bool HasRunnable(absl::Duration now) const;

  // When the next one falls due of those that must wait; InfiniteDuration if none must.
  absl::Duration NextDue(absl::Duration now) const;

 private:
  struct Entry {
    std::shared_ptr<Work> work;
    absl::Duration due;
  };
  using Entries = std::map<uint64_t, Entry>;
  Entries::const_iterator FindRunnable(absl::Duration now) const;

  const int per_device_;
  // By seq.
  Entries entries_;
  std::map<uint64_t, int> running_;
};

}  // namespace ckptd

#endif  // CKPTD_SERVER_QUEUE_WORK_LIST_H_
