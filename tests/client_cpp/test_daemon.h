#ifndef CKPTD_TESTS_CLIENT_CPP_TEST_DAEMON_H_
#define CKPTD_TESTS_CLIENT_CPP_TEST_DAEMON_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "client/cpp/core/connection.h"
#include "tests/server/testing/temp_dir.h"

namespace ckptd {

// A real ckptd of the test's own, with its socket, its pool and a folder for checkpoints. Ends with
// this object, or with the test.
class TestDaemon {
 public:
  // Starts it and waits until it serves. `flags` come after those that say where it lives.
  explicit TestDaemon(std::vector<std::string> flags = {});
  ~TestDaemon();
  TestDaemon(const TestDaemon&) = delete;
  TestDaemon& operator=(const TestDaemon&) = delete;

  // As a crash would end it; Start brings another to the same address.
  void Kill();
  void Start();

  // Options for a connection to it, with a job and deadlines fit for a test.
  ConnectionOptions Options(Transport transport = Transport::kAuto) const;
  std::string address() const { return "unix:" + (run_ / "ckptd.sock"); }

  // A path in the folder for checkpoints.
  std::string Path(const std::string& name) const { return disk_ / name; }
  const TempDir& disk() const { return disk_; }

 private:
  const std::vector<std::string> flags_;
  const TempDir run_;
  const TempDir disk_;
  const TempDir memory_{TempDir::Place::kMemory};
  pid_t pid_ = -1;
};

}  // namespace ckptd

#endif  // CKPTD_TESTS_CLIENT_CPP_TEST_DAEMON_H_
