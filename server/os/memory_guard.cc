#include "server/os/memory_guard.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>

#include "server/os/errors.h"
#include "server/os/round_up.h"
#include "server/os/signal_chain.h"

namespace ckptd {

namespace internal {

// [begin, end) is guarded; nothing while `end` is 0.
struct GuardSlot {
  std::atomic<uintptr_t> begin{0};
  std::atomic<uintptr_t> end{0};
  std::atomic<bool> torn{false};
  std::atomic<bool> taken{false};
};

}  // namespace internal

namespace {

using internal::GuardSlot;

// The table of ranges. A signal handler gets no argument of ours, and the process has one for each
// signal, so this cannot be an object of somebody's. The handler takes no lock: chunks are added at
// the front and stay for ever, their slots are used again.
struct Chunk {
  std::array<GuardSlot, 256> slots;
  Chunk* next = nullptr;
};
constinit std::atomic<Chunk*> chunks{nullptr};
static_assert(std::atomic<Chunk*>::is_always_lock_free);
static_assert(std::atomic<uintptr_t>::is_always_lock_free);

constinit PreviousAction previous_sigbus;

GuardSlot* TakeSlot() {
  for (;;) {
    for (Chunk* chunk = chunks.load(); chunk != nullptr; chunk = chunk->next) {
      for (GuardSlot& slot : chunk->slots) {
        if (!slot.taken.load() && !slot.taken.exchange(true)) return &slot;
      }
    }
    auto* chunk = new Chunk;
    chunk->next = chunks.load();
    while (!chunks.compare_exchange_weak(chunk->next, chunk)) {
    }
  }
}

// Whether `address` is in the slot's range; `end` is then that range's end. The range may change
// meanwhile, though not that of memory which a thread is allowed to touch.
bool Contains(const GuardSlot& slot, uintptr_t address, uintptr_t* end) {
  *end = slot.end.load();
  return *end > address && slot.begin.load() <= address && slot.end.load() == *end;
}

void OnSigbus(int signal, siginfo_t* info, void* context) {
  if (!MendFault(*info)) previous_sigbus.Run(signal, info, context);
}

}  // namespace

absl::Status InstallMemoryGuard() {
  if (int error = previous_sigbus.Replace(SIGBUS, OnSigbus); error < 0) {
    return OsError("memory guard", "handle SIGBUS", -error);
  }
  return absl::OkStatus();
}

bool MendFault(const siginfo_t& info) {
  if (info.si_code != BUS_ADRERR) return false;
  const auto address = reinterpret_cast<uintptr_t>(info.si_addr);
  for (Chunk* chunk = chunks.load(); chunk != nullptr; chunk = chunk->next) {
    for (GuardSlot& slot : chunk->slots) {
      uintptr_t end = 0;
      if (!Contains(slot, address, &end)) continue;
      // Before the page is there: who reads it as zeros also finds the range torn.
      slot.torn.store(true);
      const int saved_errno = errno;
      const uintptr_t page = address / kPageBytes * kPageBytes;
      // All that follows at once: a file that was cut has lost it, too, and one page each would be
      // one fault and one mapping each.
      const long mapped = syscall(SYS_mmap, page, end - page, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
      errno = saved_errno;
      return mapped == static_cast<long>(page);
    }
  }
  return false;
}

GuardedRange::GuardedRange() : slot_(TakeSlot()) {}

GuardedRange::~GuardedRange() {
  Uncover();
  slot_->torn.store(false);
  slot_->taken.store(false);
}

void GuardedRange::Cover(const uint8_t* data, size_t length) {
  Uncover();
  const auto begin = reinterpret_cast<uintptr_t>(data);
  slot_->begin.store(begin);
  slot_->end.store(begin + length);
}

void GuardedRange::Uncover() { slot_->end.store(0); }

bool GuardedRange::torn() const { return slot_->torn.load(); }

}  // namespace ckptd
