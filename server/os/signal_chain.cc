#include "server/os/signal_chain.h"

#include <cerrno>

namespace ckptd {

int PreviousAction::Replace(int signal, Handler handler) {
  if (replaced_) return 0;
  struct sigaction ours = {};
  ours.sa_sigaction = handler;
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
  sigemptyset(&ours.sa_mask);
  if (sigaction(signal, &ours, &action_) != 0) return -errno;
  replaced_ = true;
  return 0;
}

void PreviousAction::Run(int signal, siginfo_t* info, void* context) const {
  const bool has_info = (action_.sa_flags & SA_SIGINFO) != 0;
  if (has_info || (action_.sa_handler != SIG_DFL && action_.sa_handler != SIG_IGN)) {
    if (has_info) {
      action_.sa_sigaction(signal, info, context);
    } else {
      action_.sa_handler(signal);
    }
    return;
  }
  // The default action must come from the kernel, so that the exit status and the core are those of
  // the fault itself: it faults again when the handler returns. What was sent is sent again; it
  // stays pending until then.
  sigaction(signal, &action_, nullptr);
  if (info->si_code <= 0) raise(signal);  // NOLINT(bugprone-signal-handler)
}

}  // namespace ckptd
