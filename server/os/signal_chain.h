#ifndef CKPTD_SERVER_OS_SIGNAL_CHAIN_H_
#define CKPTD_SERVER_OS_SIGNAL_CHAIN_H_

#include <csignal>

namespace ckptd {

// What handled a signal before a handler of ours: the default action, or a handler of a sanitizer's
// or of ours. Lives as long as the process, as the handler does.
class PreviousAction {
 public:
  using Handler = void (*)(int signal, siginfo_t* info, void* context);

  // Puts `handler` in its place and remembers it. The handler runs on the thread's alternate stack
  // where it has one. Does nothing the second time. Returns 0 or -errno.
  int Replace(int signal, Handler handler);

  // For the handler, when the signal is not for it or it is done: lets happen what would have
  // happened without it. Async-signal-safe.
  void Run(int signal, siginfo_t* info, void* context) const;

 private:
  struct sigaction action_ = {};
  bool replaced_ = false;
};

}  // namespace ckptd

#endif  // CKPTD_SERVER_OS_SIGNAL_CHAIN_H_
