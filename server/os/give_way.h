#ifndef CKPTD_SERVER_OS_GIVE_WAY_H_
#define CKPTD_SERVER_OS_GIVE_WAY_H_

#include <functional>

#include "absl/status/status.h"

namespace ckptd {

// Adds `niceness` to that of the calling thread, and so of the threads and processes that it starts
// from then on. For good: without privileges nothing is taken back. Says in the log where it fails.
void GiveWay(int niceness);

// Runs `work` in a thread of its own, which may give way without that the caller does, and returns
// what it returns. A crash in it is one of what the caller works on.
absl::Status RunInThread(const std::function<absl::Status()>& work);

}  // namespace ckptd

#endif  // CKPTD_SERVER_OS_GIVE_WAY_H_
