#ifndef CKPTD_SERVER_PLUGIN_HOST_PROBE_H_
#define CKPTD_SERVER_PLUGIN_HOST_PROBE_H_

#include <string>

#include "absl/status/statusor.h"
#include "plugins/abi/plugin.h"

namespace ckptd {

// The table of the plugin in `file`, which is loaded into this process for good. PLUGIN_REFUSED.
absl::StatusOr<ckptd_backend> LoadPlugin(const std::string& file);

// Gives a plugin its settings: keys and values, each followed by a zero byte. BACKEND_FAILED, or
// PLUGIN_REFUSED for settings of one that takes none; both with what the plugin says.
absl::Status Configure(const ckptd_backend& table, const std::string& settings);

// What main does for the daemon, each in a process of its own.
// Prints name, version and capabilities of the plugin, a line each; or why it is refused. Returns
// the exit code.
int ProbePlugin(const std::string& file);
// Gives the plugin the settings that standard input has, and prints why it refuses them, if it
// does. Returns the exit code.
int ConfigurePlugin(const std::string& file);

}  // namespace ckptd

#endif  // CKPTD_SERVER_PLUGIN_HOST_PROBE_H_
