#ifndef CKPTD_TESTS_SERVER_TESTING_WAIT_H_
#define CKPTD_TESTS_SERVER_TESTING_WAIT_H_

#include <functional>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace ckptd {

// How long a test waits for what must happen: generous, since only a failing test waits so long.
inline constexpr absl::Duration kPatience = absl::Seconds(60);
absl::Time Soon();

// Waits until `condition` holds, for things that notify nobody. False after kPatience.
bool Eventually(const std::function<bool()>& condition);

// A place where other threads stop until the test lets them go on. Thread-safe.
class Gate {
 public:
  // Stops the calling thread until it may pass.
  void Pass();

  // Whether `count` threads have arrived in all within kPatience, passed or not.
  bool WaitForArrivals(int count);
  // Lets `count` threads pass, those that have arrived or those to come.
  void Let(int count);
  // Lets all threads pass, from now on.
  void Open();
  // Stops those that come from now on.
  void Close();

 private:
  absl::Mutex mu_;
  int arrived_ ABSL_GUARDED_BY(mu_) = 0;
  int permits_ ABSL_GUARDED_BY(mu_) = 0;
  bool open_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace ckptd

#endif  // CKPTD_TESTS_SERVER_TESTING_WAIT_H_
