#ifndef CKPTD_SERVER_QUEUE_REQUESTS_H_
#define CKPTD_SERVER_QUEUE_REQUESTS_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "ckptd/v1/checkpoint.pb.h"
#include "server/backend/backend.h"
#include "server/staging/image.h"
#include "server/staging/pool.h"

namespace ckptd {

// The job of a save's name, jobs/{job}/saves/{save}; INVALID_NAME where it is none.
absl::StatusOr<std::string> JobOfSave(const std::string& name);

// The job of jobs/{job}, or "" for jobs/- and, where `optional`, for an empty string.
absl::StatusOr<std::string> JobOfParent(const std::string& parent, bool optional);

// Checks what BeginSave announces: at most `max_tensors`, names there and unique, sizes that add up
// to less than 2^50 bytes; arguments of at most 16 MiB.
absl::Status CheckTensors(const v1::BeginSaveRequest& request, int64_t max_tensors);

// How many tensors it announces, in either form.
int64_t CountTensors(const v1::BeginSaveRequest& request);

// INVALID_REQUEST for a visibility that is none.
absl::Status CheckVisible(const v1::BeginSaveRequest& request);

// The same announcement as a backend takes it.
CheckpointSpec ToSpec(const v1::BeginSaveRequest& request);

// The request without its session, in bytes that are equal for equal requests. They can be parsed.
std::string Canonical(const v1::BeginSaveRequest& request);

// What a client needs to map the image.
void Describe(const Image& image, v1::Image* told);
void Describe(const Pool::FreeImage& image, v1::Image* told);

// DRAINING: `what` did not come to its end before the daemon's.
absl::Status Stopping(absl::string_view what);

// SAVE_NOT_STAGING: why one cannot `verb` the save.
absl::Status NotStaging(const v1::Save& save, absl::string_view verb);

}  // namespace ckptd

#endif  // CKPTD_SERVER_QUEUE_REQUESTS_H_
