#ifndef CKPTD_SERVER_PLUGIN_HOST_PLUGIN_HOST_H_
#define CKPTD_SERVER_PLUGIN_HOST_PLUGIN_HOST_H_

#include <string>

#include "absl/status/statusor.h"
#include "plugins/abi/plugin.h"

namespace ckptd {

// Loads the plugin in `file` into this process, which is then no place for anything else. A `file`
// that is the name of a backend that is built in is that one.
// FAILED_PRECONDITION (PLUGIN_REFUSED) with a sentence where it is none that this daemon can use.
absl::StatusOr<ckptd_backend> LoadPlugin(const std::string& file);

// Prints what the plugin says of itself, for the daemon that asks: name, version, and then
// capabilities, one a line. Returns the exit code of the process: 1 with the reason in that place
// where the plugin is refused.
int ProbePlugin(const std::string& file);

// The host process of the plugin in `file`: attaches itself to the daemon that started it
// (CKPTD_ADDRESS, CKPTD_HOST_ID), and does its tasks until it is not needed any more. Returns the
// exit code; ends the process when standard input does, for the daemon is gone then.
int RunPluginHost(const std::string& file);

}  // namespace ckptd

#endif  // CKPTD_SERVER_PLUGIN_HOST_PLUGIN_HOST_H_
