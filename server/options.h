#ifndef CKPTD_SERVER_OPTIONS_H_
#define CKPTD_SERVER_OPTIONS_H_

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"

namespace ckptd {

// What a user can set. Each is a flag (--staging-budget), an environment variable
// (CKPTD_STAGING_BUDGET) and a key in the file that --config names (staging-budget = "8GiB"); a
// flag goes before the environment, and that before the file.
struct Options {
  // Path of the unix socket, absolute. Default: that of DefaultAddress().
  std::string socket;

  // The tmpfs folder for staging images. Default: /dev/shm/ckptd-$UID.
  std::string pool_dir;

  // The folder of the journal. Default: $XDG_STATE_HOME/ckptd, or $HOME/.local/state/ckptd; where
  // neither can be had, that of the socket.
  std::string state_dir;

  // The most that staging images may take, in bytes; 0: a quarter of the smallest of RAM, the
  // control group's limit and the tmpfs. Written as 8GiB, 500MB or a number of bytes.
  uint64_t staging_budget_bytes = 0;

  // Folders, absolute: checkpoints are saved, loaded and removed beneath these only; symlinks that
  // lead out of them are refused. Repeat the flag, or separate by colons, for more than one; in the
  // file it may be a list. Empty: anywhere that the daemon's user may.
  std::vector<std::string> allow_roots;

  // The folder with plugins, absolute; it and its files must be this user's or root's, and nobody
  // else's to write to. One that is given must exist. Default: ../lib/ckptd/plugins, as seen from
  // the folder of the program.
  std::string plugin_dir;

  // What plugins are told: in the file, the keys of [backend.NAME]. No flag, no variable.
  std::map<std::string, std::vector<std::pair<std::string, std::string>>> backend_config;

  // How long SIGTERM waits for pending saves to become durable. What is not by then stays accepted
  // for the next start. Written as 90s, 5m.
  absl::Duration drain_timeout = absl::Minutes(5);

  // How long a save is tried again after an error of the storage that may pass, such as a full
  // disk.
  absl::Duration retry_timeout = absl::Seconds(30);

  // How far a save that is written alone gives way to everything else that wants the processor, as
  // nice(1) counts it, from 0 to 19; on top of the daemon's own. See docs/performance.md.
  int persist_nice = 17;

  // End after that long without a client and without work; 0: never.
  absl::Duration idle_exit = absl::ZeroDuration();

  // Give staging memory that no save needs back to the system after that long without a client and
  // without work; 0: never. The next save finds none that is warm.
  absl::Duration idle_trim = absl::Minutes(10);

  // trace, debug, info, warn, error or off.
  std::string log_level = "info";
};

// What the command line asks for.
struct CommandLine {
  Options options;
  // Set where there is nothing to serve: after --help or --version (0), or wrong usage (2). What
  // there was to say has been said.
  bool exit = false;
  int exit_code = 0;
};

CommandLine ParseCommandLine(int argc, char** argv);

}  // namespace ckptd

#endif  // CKPTD_SERVER_OPTIONS_H_
