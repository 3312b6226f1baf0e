// Tells ThreadSanitizer of the locks that absl::Mutex takes, and of what an absl::Notification
// notifies. To be preloaded.
//
// The system's Abseil is not built with ThreadSanitizer, which therefore does not see that one
// thread's Unlock comes before another's Lock, and takes all that a mutex guards for a race: in our
// code, and in gRPC's, which uses the same mutex. No suppression helps, as the reports are about
// our own lines. So the functions that take or release a mutex are put before Abseil's: they call
// those, and tell the sanitizer.
//
// While Abseil runs, a thread's accesses are not looked at, since the conditions of Await and
// LockWhen are evaluated there, by whichever thread holds the lock.

#include <dlfcn.h>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"

extern "C" {
// The sanitizer's, in the program; there are none in a program that is not built with it.
__attribute__((weak)) void __tsan_acquire(void* address);
__attribute__((weak)) void __tsan_release(void* address);
__attribute__((weak)) void AnnotateIgnoreReadsBegin(const char* file, int line);
__attribute__((weak)) void AnnotateIgnoreReadsEnd(const char* file, int line);
__attribute__((weak)) void AnnotateIgnoreWritesBegin(const char* file, int line);
__attribute__((weak)) void AnnotateIgnoreWritesEnd(const char* file, int line);
}

namespace {

void Acquire(const void* address) {
  if (__tsan_acquire != nullptr) __tsan_acquire(const_cast<void*>(address));
}

void Release(void* address) {
  if (__tsan_release != nullptr) __tsan_release(address);
}

// While it lives, the thread's accesses are not looked at.
class Unobserved {
 public:
  Unobserved() {
    if (AnnotateIgnoreReadsBegin == nullptr) return;
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unobserved() {
    if (AnnotateIgnoreReadsBegin == nullptr) return;
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
};

// Calls the function that this library hides, by its name in the object file.
template <typename Result, typename... Arguments>
Result Call(const char* name, Arguments... arguments) {
  const Unobserved unobserved;
  return reinterpret_cast<Result (*)(Arguments...)>(dlsym(RTLD_NEXT, name))(arguments...);
}

}  // namespace

namespace absl {
ABSL_NAMESPACE_BEGIN

// NAME is the mangled one, after "_ZN4absl7debian3", or "_ZNK4absl7debian3" for a const function.
#define CALL(RESULT, NAME, ...) Call<RESULT>("_ZN4absl7debian3" NAME, __VA_ARGS__)
#define CALL_CONST(RESULT, NAME, ...) Call<RESULT>("_ZNK4absl7debian3" NAME, __VA_ARGS__)

void Mutex::Lock() {
  CALL(void, "5Mutex4LockEv", this);
  Acquire(this);
}

void Mutex::ReaderLock() {
  CALL(void, "5Mutex10ReaderLockEv", this);
  Acquire(this);
}

bool Mutex::TryLock() {
  const bool locked = CALL(bool, "5Mutex7TryLockEv", this);
  if (locked) Acquire(this);
  return locked;
}

void Mutex::Unlock() {
  Release(this);
  CALL(void, "5Mutex6UnlockEv", this);
}

void Mutex::ReaderUnlock() {
  Release(this);
  CALL(void, "5Mutex12ReaderUnlockEv", this);
}

void Mutex::LockWhen(const Condition& condition) {
  CALL(void, "5Mutex8LockWhenERKNS0_9ConditionE", this, &condition);
  Acquire(this);
}

bool Mutex::LockWhenWithTimeout(const Condition& condition, Duration timeout) {
  const bool met = CALL(bool, "5Mutex19LockWhenWithTimeoutERKNS0_9ConditionENS0_8DurationE", this,
                        &condition, timeout);
  Acquire(this);
  return met;
}

bool Mutex::LockWhenWithDeadline(const Condition& condition, Time deadline) {
  const bool met = CALL(bool, "5Mutex20LockWhenWithDeadlineERKNS0_9ConditionENS0_4TimeE", this,
                        &condition, deadline);
  Acquire(this);
  return met;
}

void Mutex::Await(const Condition& condition) {
  Release(this);
  CALL(void, "5Mutex5AwaitERKNS0_9ConditionE", this, &condition);
  Acquire(this);
}

bool Mutex::AwaitWithTimeout(const Condition& condition, Duration timeout) {
  Release(this);
  const bool met = CALL(bool, "5Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE", this,
                        &condition, timeout);
  Acquire(this);
  return met;
}

bool Mutex::AwaitWithDeadline(const Condition& condition, Time deadline) {
  Release(this);
  const bool met = CALL(bool, "5Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE", this,
                        &condition, deadline);
  Acquire(this);
  return met;
}

void CondVar::Wait(Mutex* mutex) {
  Release(mutex);
  CALL(void, "7CondVar4WaitEPNS0_5MutexE", this, mutex);
  Acquire(mutex);
}

bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  Release(mutex);
  const bool timed_out =
      CALL(bool, "7CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE", this, mutex, timeout);
  Acquire(mutex);
  return timed_out;
}

bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  Release(mutex);
  const bool timed_out =
      CALL(bool, "7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE", this, mutex, deadline);
  Acquire(mutex);
  return timed_out;
}

void Notification::Notify() {
  Release(this);
  CALL(void, "12Notification6NotifyEv", this);
}

void Notification::WaitForNotification() const {
  CALL_CONST(void, "12Notification19WaitForNotificationEv", this);
  Acquire(this);
}

bool Notification::WaitForNotificationWithTimeout(Duration timeout) const {
  const bool notified = CALL_CONST(
      bool, "12Notification30WaitForNotificationWithTimeoutENS0_8DurationE", this, timeout);
  if (notified) Acquire(this);
  return notified;
}

bool Notification::WaitForNotificationWithDeadline(Time deadline) const {
  const bool notified = CALL_CONST(
      bool, "12Notification31WaitForNotificationWithDeadlineENS0_4TimeE", this, deadline);
  if (notified) Acquire(this);
  return notified;
}

#undef CALL
#undef CALL_CONST

ABSL_NAMESPACE_END
}  // namespace absl
