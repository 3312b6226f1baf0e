#ifndef CKPTD_SERVER_BACKEND_PLUGIN_LOADER_H_
#define CKPTD_SERVER_BACKEND_PLUGIN_LOADER_H_

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "server/backend/backend.h"

namespace ckptd {

// What [backend.NAME] in the daemon's file has, by NAME.
using BackendConfig = std::map<std::string, std::vector<std::pair<std::string, std::string>>>;

struct RefusedPlugin {
  std::string file;
  absl::Status error;  // PLUGIN_REFUSED
};

struct LoadedPlugins {
  std::vector<std::unique_ptr<Backend>> backends;  // by file name
  std::vector<RefusedPlugin> refused;
};

// Finds the plugins in the folder `dir`: its regular files NAME.so. None is loaded into this
// process: `program` (--plugin-probe FILE) is asked about each, gives it its settings once to see
// whether it takes them (--plugin-configure FILE), and is its host process (--plugin-host FILE)
// later. Folder and files must be this user's or root's, and nobody else's to
// write to. No folder: no plugins. `image_plugin` plans their images; `taken` are names that they
// may not have.
LoadedPlugins FindPlugins(const std::string& dir, const std::string& program,
                          const ckptd_backend* image_plugin, const BackendConfig& config,
                          std::vector<std::string> taken);

}  // namespace ckptd

#endif  // CKPTD_SERVER_BACKEND_PLUGIN_LOADER_H_
