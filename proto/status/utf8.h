#ifndef CKPTD_PROTO_STATUS_UTF8_H_
#define CKPTD_PROTO_STATUS_UTF8_H_

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace ckptd {

// `bytes` as a string that a protobuf message may hold: what is not UTF-8, such as a file's name
// may be, becomes '?'. At most `max_bytes` long, cut between two characters.
std::string ToUtf8(absl::string_view bytes, size_t max_bytes = std::string::npos);

}  // namespace ckptd

#endif  // CKPTD_PROTO_STATUS_UTF8_H_
