#ifndef CKPTD_PROTO_STATUS_ADDRESS_H_
#define CKPTD_PROTO_STATUS_ADDRESS_H_

#include <string>

namespace ckptd {

// Where daemon and clients meet when nobody says otherwise: $CKPTD_ADDRESS, else
// "unix:$XDG_RUNTIME_DIR/ckptd/ckptd.sock", else "unix:/tmp/ckptd-$UID/ckptd.sock".
// A form that gRPC takes as a target: "unix:PATH" or "HOST:PORT".
std::string DefaultAddress();

}  // namespace ckptd

#endif  // CKPTD_PROTO_STATUS_ADDRESS_H_
