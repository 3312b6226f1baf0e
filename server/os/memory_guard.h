#ifndef CKPTD_SERVER_OS_MEMORY_GUARD_H_
#define CKPTD_SERVER_OS_MEMORY_GUARD_H_

#include <csignal>
#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"

namespace ckptd {

// Memory that another process can take away: a mapped file that it may cut. Who touches a page that
// is gone gets a SIGBUS, which would end the daemon. While a range is guarded, and the handler is
// installed, the rest of the range from that page on is replaced by zeros, the access goes on, and
// the range is torn: its contents are not to be used. System calls that read lost pages need no
// guard; they answer EFAULT.

// Installs the handler of SIGBUS for the life of the process: to be called by main, or a test,
// before there are threads. A SIGBUS outside guarded ranges goes on to what was there before. Doing
// it again changes nothing.
absl::Status InstallMemoryGuard();

// For handlers of SIGBUS: whether the fault lay in a guarded range and was mended, so that the
// handler is to return. Async-signal-safe.
bool MendFault(const siginfo_t& info);

namespace internal {
struct GuardSlot;
}  // namespace internal

// One guarded range; empty at first. Owned by whoever owns the memory, and not thread-safe but for
// torn(); any thread may touch the memory while it is covered.
class GuardedRange {
 public:
  GuardedRange();
  ~GuardedRange();
  GuardedRange(const GuardedRange&) = delete;
  GuardedRange& operator=(const GuardedRange&) = delete;

  // Guards `length` bytes at `data`, whole pages, in place of what it guarded before.
  void Cover(const uint8_t* data, size_t length);
  // Guards nothing any more. To be called before the memory is unmapped or moved.
  void Uncover();

  // Whether memory was lost under this range, now or before the last Cover. Stays so.
  bool torn() const;

 private:
  internal::GuardSlot* const slot_;
};

}  // namespace ckptd

#endif  // CKPTD_SERVER_OS_MEMORY_GUARD_H_
