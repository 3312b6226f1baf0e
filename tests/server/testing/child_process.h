#ifndef CKPTD_TESTS_SERVER_TESTING_CHILD_PROCESS_H_
#define CKPTD_TESTS_SERVER_TESTING_CHILD_PROCESS_H_

#include <sys/types.h>

#include <csignal>
#include <string>
#include <vector>

namespace ckptd {

// A program that runs beside the test; killed when this goes.
class ChildProcess {
 public:
  // `command`: path and arguments.
  explicit ChildProcess(const std::vector<std::string>& command);
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  // The next line of its standard output without the line's end; "" at the end of that. Blocks.
  std::string ReadLine();
  void Kill() { Kill(SIGKILL); }
  void Kill(int signal);
  // How it ended, as of waitpid. Blocks.
  int Wait();

 private:
  pid_t pid_ = -1;
  int stdout_ = -1;
};

}  // namespace ckptd

#endif  // CKPTD_TESTS_SERVER_TESTING_CHILD_PROCESS_H_
