#ifndef CKPTD_SERVER_PLUGIN_HOST_PLUGIN_HOST_H_
#define CKPTD_SERVER_PLUGIN_HOST_PLUGIN_HOST_H_

#include <string>

namespace ckptd {

// The host process of the plugin in `file`, or of the backend that is built in and has that name:
// attaches itself to the daemon that started it
// (CKPTD_ADDRESS, CKPTD_HOST_ID), and does its tasks until it is not needed any more. Returns the
// exit code; ends the process when standard input does, for the daemon is gone then.
int RunPluginHost(const std::string& file);

}  // namespace ckptd

#endif  // CKPTD_SERVER_PLUGIN_HOST_PLUGIN_HOST_H_
