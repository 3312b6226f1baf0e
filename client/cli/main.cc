#include <csignal>
#include <iostream>

#include "client/cli/commands.h"
#include "client/cli/daemon.h"
#include "client/cli/exit_code.h"
#include "client/cli/options.h"
#include "client/cli/output.h"
#include "client/cli/text.h"

namespace ckptd::cli {
namespace {

absl::Status Run(Daemon& daemon, const Options& options, Output& out) {
  switch (options.command) {
    case Options::Command::kStatus:
      return RunStatus(daemon, options, out);
    case Options::Command::kList:
      return RunList(daemon, options, out);
    case Options::Command::kGet:
      return RunGet(daemon, options, out);
    case Options::Command::kWatch:
      return RunWatch(daemon, options, out);
    case Options::Command::kCancel:
      return RunCancel(daemon, options, out);
    case Options::Command::kExport:
      return RunExport(daemon, options, out);
    case Options::Command::kFlush:
      return RunFlush(daemon, options, out);
    case Options::Command::kVerify:
      return RunVerify(daemon, options, out);
    case Options::Command::kInspect:
      return RunInspect(daemon, options, out);
    case Options::Command::kConvert:
      return RunConvert(daemon, options, out);
  }
  return absl::InternalError("unknown command");
}

int Main(int argc, char** argv) {
  int exit_code = kExitOk;
  const std::optional<Options> options = ParseOptions(argc, argv, &exit_code);
  if (!options.has_value()) return exit_code;
  // A reader that goes away is noticed where we write, not by the death of this process.
  std::signal(SIGPIPE, SIG_IGN);
  if (options->command == Options::Command::kWatch) BlockInterrupts();
  Daemon daemon(options->address);
  Output out;
  absl::Status status = Run(daemon, *options, out);
  if (status.ok()) status = out.status();
  if (status.ok()) return kExitOk;
  std::cerr << "ckptctl: " << Printable(std::string(status.message())) << std::endl;
  return IsNoDaemon(status) ? kExitNoDaemon : kExitFailed;
}

}  // namespace
}  // namespace ckptd::cli

int main(int argc, char** argv) { return ckptd::cli::Main(argc, argv); }
