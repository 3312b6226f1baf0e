#ifndef CKPTD_SERVER_BACKEND_FINGERPRINT_H_
#define CKPTD_SERVER_BACKEND_FINGERPRINT_H_

#include <string>

#include "google/protobuf/message_lite.h"

namespace ckptd {

// A message in bytes that are equal for equal messages. They can be parsed.
std::string CanonicalBytes(const google::protobuf::MessageLite& message);

// A short mark of such bytes, the same in every build of the daemon, and hardly ever that of
// others.
std::string Fingerprint(const std::string& bytes);

}  // namespace ckptd

#endif  // CKPTD_SERVER_BACKEND_FINGERPRINT_H_
