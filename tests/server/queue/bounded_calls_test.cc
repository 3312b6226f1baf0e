#include "server/queue/bounded_calls.h"

#include <gtest/gtest.h>

#include "tests/server/testing/wait.h"

namespace ckptd {
namespace {

TEST(BoundedCallsTest, WaitsForACall) {
  BoundedCalls calls(2);
  for (int i = 0; i < 100; ++i) {
    bool called = false;
    EXPECT_TRUE(calls.Run([&] { called = true; }, absl::InfiniteDuration()));
    EXPECT_TRUE(called);
  }
}

TEST(BoundedCallsTest, GivesUpOnOneThatHangsAndServesTheNext) {
  Gate gate;
  BoundedCalls calls(2);
  EXPECT_FALSE(calls.Run([&] { gate.Pass(); }, absl::ZeroDuration()));
  EXPECT_TRUE(calls.Run([] {}, absl::InfiniteDuration()));
  EXPECT_FALSE(calls.Run([&] { gate.Pass(); }, absl::ZeroDuration()));
  ASSERT_TRUE(gate.WaitForArrivals(2));
  EXPECT_FALSE(calls.Run([] {}, absl::InfiniteDuration())) << "all threads hang";
  gate.Open();
  EXPECT_TRUE(Eventually([&] { return calls.Run([] {}, absl::InfiniteDuration()); }));
}

}  // namespace
}  // namespace ckptd
