#ifndef CKPTD_CLIENT_CPP_CORE_SAVE_STATE_H_
#define CKPTD_CLIENT_CPP_CORE_SAVE_STATE_H_

#include "absl/status/status.h"
#include "ckptd/v1/checkpoint.pb.h"

namespace ckptd {

// Whether a save is in a terminal state.
bool HasEnded(const v1::Save& save);

// What became of a save that has ended: OK once durable (or superseded, as its trainer chose),
// else the error that the daemon gave, with name and path in front.
absl::Status Outcome(const v1::Save& save);

}  // namespace ckptd

#endif  // CKPTD_CLIENT_CPP_CORE_SAVE_STATE_H_
