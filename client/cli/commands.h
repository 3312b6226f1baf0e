#ifndef CKPTD_CLIENT_CLI_COMMANDS_H_
#define CKPTD_CLIENT_CLI_COMMANDS_H_

#include "absl/status/status.h"
#include "client/cli/daemon.h"
#include "client/cli/options.h"
#include "client/cli/output.h"

namespace ckptd::cli {

// Each runs one command and shows what came of it. The error says why the operation failed; what
// was shown before stays.
absl::Status RunStatus(Daemon& daemon, const Options& options, Output& out);
absl::Status RunList(Daemon& daemon, const Options& options, Output& out);
absl::Status RunGet(Daemon& daemon, const Options& options, Output& out);
absl::Status RunCancel(Daemon& daemon, const Options& options, Output& out);
absl::Status RunExport(Daemon& daemon, const Options& options, Output& out);
absl::Status RunFlush(Daemon& daemon, const Options& options, Output& out);

// Check and look into files of this machine, without a daemon; with --backend the daemon has the
// backend do it.
absl::Status RunVerify(Daemon& daemon, const Options& options, Output& out);
absl::Status RunInspect(Daemon& daemon, const Options& options, Output& out);

// Reads options.source, and saves it to options.path with options.backend; ends when that is
// durable.
absl::Status RunConvert(Daemon& daemon, const Options& options, Output& out);

// Leaves SIGINT and SIGTERM to RunWatch. Must be called before any other thread is started, which
// gRPC does with the first channel.
void BlockInterrupts();

// Follows saves until the one asked for has ended, or SIGINT. The error of a save that did not
// succeed. Wants BlockInterrupts.
absl::Status RunWatch(Daemon& daemon, const Options& options, Output& out);

// The same for options.save, where an interrupt ends the process.
absl::Status FollowSave(Daemon& daemon, const Options& options, Output& out);

}  // namespace ckptd::cli

#endif  // CKPTD_CLIENT_CLI_COMMANDS_H_
