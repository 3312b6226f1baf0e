#ifndef CKPTD_SERVER_QUEUE_COPY_TURNS_H_
#define CKPTD_SERVER_QUEUE_COPY_TURNS_H_

#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace ckptd {

// The order in which trainers that save at the same time copy their states. Where all of them copy
// at once, all are done at the same time, and until then the disk has nothing to write; in turn,
// the first is done early and the last no later.
//
// A turn promises nothing: a trainer may be slow, or have died. So it counts for a while only, and
// nobody waits for one for longer than that.
//
// Thread-safe.
class CopyTurns {
 public:
  struct Options {
    // Copies at a time. A client copies in as many threads as there are cores, up to four.
    int at_once = std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / 4);
    // How long a copy counts, and is waited for, besides what its bytes take at 2 GB/s: several
    // times what it takes. Sixteen trainers on two cores have begun after 30 ms.
    absl::Duration least = absl::Milliseconds(100);
    absl::Duration most = absl::Milliseconds(600);
  };
  // Copies of less take no turn.
  static constexpr uint64_t kSmallBytes = uint64_t{4} << 20;

  explicit CopyTurns(const Options& options) : options_(options) {}

  // Waits for the turn of the save `number`, first come first served, for as long as its copy
  // counts or until `deadline`; then it is its turn in any case.
  void Begin(uint64_t number, uint64_t bytes, absl::Time deadline);
  // The copy is done, or will not be. Nothing happens where it had no turn.
  void End(uint64_t number);

 private:
  const Options options_;
  absl::Mutex mu_;
  absl::CondVar changed_;
  // When the turns end that are on, by save.
  std::map<uint64_t, absl::Time> copying_ ABSL_GUARDED_BY(mu_);
  // Saves that wait, oldest first.
  std::deque<uint64_t> waiting_ ABSL_GUARDED_BY(mu_);
};

}  // namespace ckptd

#endif  // CKPTD_SERVER_QUEUE_COPY_TURNS_H_
