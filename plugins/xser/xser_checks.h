#ifndef CKPTD_PLUGINS_XSER_XSER_CHECKS_H_
#define CKPTD_PLUGINS_XSER_XSER_CHECKS_H_

#include "plugins/abi/plugin.h"

namespace ckptd {

// `verify` and `inspect` of the backend xla-xser: of the file and of each tensor's file that it
// refers to, by whomever they were written. One that is missing is damage. They unpickle nothing.
// inspect tells a tensor for each reference, by the keys that lead there.
ckptd_code VerifyXser(const ckptd_host* host, ckptd_call* call, const char* path);
ckptd_code InspectXser(const ckptd_host* host, ckptd_call* call, const char* path);

}  // namespace ckptd

#endif  // CKPTD_PLUGINS_XSER_XSER_CHECKS_H_
