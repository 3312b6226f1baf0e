#ifndef CKPTD_CLIENT_CPP_CORE_SEND_BUFFER_H_
#define CKPTD_CLIENT_CPP_CORE_SEND_BUFFER_H_

#include "absl/strings/string_view.h"

namespace ckptd {

// Gives this process's connections to `peer`, as ClientContext::peer() names it ("unix:PATH"), a
// larger send buffer, unless they have one, as far as the system allows (net.core.wmem_max).
// gRPC leaves them the 208 KiB that the system gives: whoever sends a state waits each time that
// this is full until the other end has read, and both are woken for each of these pieces. Nothing
// happens where it is no unix socket.
void WidenSendBuffers(absl::string_view peer);

}  // namespace ckptd

#endif  // CKPTD_CLIENT_CPP_CORE_SEND_BUFFER_H_
