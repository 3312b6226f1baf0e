#ifndef CKPTD_CLIENT_CLI_EXIT_CODE_H_
#define CKPTD_CLIENT_CLI_EXIT_CODE_H_

namespace ckptd::cli {

enum ExitCode {
  kExitOk = 0,
  kExitFailed = 1,    // The operation failed; one sentence on stderr says why.
  kExitUsage = 2,     // Wrong command line.
  kExitNoDaemon = 3,  // Nothing answers at the address.
};

}  // namespace ckptd::cli

#endif  // CKPTD_CLIENT_CLI_EXIT_CODE_H_
