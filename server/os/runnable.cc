#include "server/os/runnable.h"

#include <fstream>
#include <string>

namespace ckptd {

// "0.20 0.18 0.12 1/80 11206": the average of 1, 5 and 15 minutes, runnable / all threads, a pid.
int RunnableThreads() {
  std::ifstream file("/proc/loadavg");
  std::string average;
  int runnable = 0;
  file >> average >> average >> average >> runnable;
  return file ? runnable : 0;
}

}  // namespace ckptd
