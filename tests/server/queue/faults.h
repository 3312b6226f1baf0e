#ifndef CKPTD_TESTS_SERVER_QUEUE_FAULTS_H_
#define CKPTD_TESTS_SERVER_QUEUE_FAULTS_H_

#include <gtest/gtest.h>

#include <array>
#include <cerrno>
#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "tests/server/testing/queue_fixture.h"

namespace ckptd {

// In place of an error: a write of half of what it should.
constexpr int kShortWrite = 0;

// An error of the system, and what the daemon may make of it.
struct Fault {
  int error;
  const char* name;
  std::array<absl::string_view, 2> reasons;
  // Whether it is tried again.
  bool may_pass;
};

inline void PrintTo(const Fault& fault, std::ostream* out) { *out << fault.name; }

// Memory that the pool cannot have is POOL_EXHAUSTED, space for a folder STORAGE_FULL.
inline constexpr Fault kFaults[] = {
    {ENOSPC, "ENOSPC", {"STORAGE_FULL", "POOL_EXHAUSTED"}, true},
    {ENOMEM, "ENOMEM", {"STORAGE_ERROR", "POOL_EXHAUSTED"}, true},
    {EIO, "EIO", {"STORAGE_ERROR"}, true},
    {EINTR, "EINTR", {"STORAGE_ERROR"}, true},
    {EMFILE, "EMFILE", {"STORAGE_ERROR"}, true},
    {EROFS, "EROFS", {"READ_ONLY_STORAGE"}, false},
    {EACCES, "EACCES", {"PERMISSION_DENIED"}, false},
    // Every other call is made as it is.
    {kShortWrite, "ShortWrite", {}, true},
};

// One call fails in its turn, whichever it is, and then no other: what may pass has passed.
class FaultsTest : public QueueTest, public testing::WithParamInterface<Fault> {
 protected:
  FaultsTest() : QueueTest(TempDir::Place::kMemory) {}
  void SetUp() override;
  void TearDown() override;

  static SaveQueue::Options Options();

  // Calls `one` with 1, 2 and so on, until it makes fewer calls than that, which must not be before
  // `least`. It is to have the call of that number fail, by FailNth, and returns the calls that
  // were made. A failed check names the call.
  void ForEachCall(size_t least, const std::function<std::vector<FsCall>(int n)>& one);
  void FailNth(int n);
  // Fails the test if `status` is another error than that of a failed call.
  void ExpectFault(const absl::Status& status) const;
  // Lets the clock go on until `condition` holds.
  bool Later(const std::function<bool()>& condition);
  // Waits until all saves and removals have ended.
  void FinishAll();
  // That nothing is left: no image in use, none in the folder after a restart, and no more files
  // open than before when the queue is gone. Without a queue then.
  void ExpectNothingLeft();

 private:
  size_t open_files_ = 0;
};

inline std::string NameOfFault(const testing::TestParamInfo<Fault>& fault) {
  return fault.param.name;
}

}  // namespace ckptd

#endif  // CKPTD_TESTS_SERVER_QUEUE_FAULTS_H_
