#include "server/api/polling.h"

#include <grpc/support/time.h>
#include <pthread.h>

#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace ckptd {

void PollWithoutNaps() {}

}  // namespace ckptd

#ifdef CKPTD_GRPC_IS_SHARED
namespace {

// Of the threads in CompletionQueue::CallbackAlternativeCQ.
constexpr absl::string_view kRunsCallbacks = "nexting_thread";

absl::Duration Until(gpr_timespec time) {
  const gpr_timespec left =
      time.clock_type == GPR_TIMESPAN ? time : gpr_time_sub(time, gpr_now(time.clock_type));
  return absl::Seconds(left.tv_sec) + absl::Nanoseconds(left.tv_nsec);
}

}  // namespace

// gRPC gives no other way to tell these threads: they ask for the nap by this function alone, and a
// program's own definition of it goes before the one in libgpr.
void gpr_sleep_until(gpr_timespec until) {
  char name[16] = {};
  if (pthread_getname_np(pthread_self(), name, sizeof name) == 0 && name == kRunsCallbacks) return;
  absl::SleepFor(Until(until));
}
#endif
