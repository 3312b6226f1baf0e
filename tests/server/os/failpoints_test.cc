#include "server/os/failpoints.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <set>

#include "tests/server/testing/status_matchers.h"

namespace ckptd {
namespace {

TEST(FailpointsTest, DoNothingUnlessToldTo) {
  Failpoints failpoints;
  for (const absl::string_view name : kFailpoints) failpoints.Pass(name);
  ASSERT_OK(failpoints.Set(""));
  for (const absl::string_view name : kFailpoints) failpoints.Pass(name);
}

TEST(FailpointsTest, KillAtTheNthTime) {
  EXPECT_EXIT(
      {
        Failpoints failpoints;
        if (!failpoints.Set("end.journaled:2").ok()) _exit(1);
        failpoints.Pass("end.released");
        failpoints.Pass("end.journaled");
        fputs("passed once\n", stderr);
        failpoints.Pass("end.journaled");
      },
      testing::KilledBySignal(SIGKILL), "passed once");
}

TEST(FailpointsTest, RefuseWhatTheyDoNotKnow) {
  Failpoints failpoints;
  for (const char* spec : {"no.such", "end.journaled:0", "end.journaled:x", ":1"}) {
    EXPECT_THAT(failpoints.Set(spec),
                IsError(absl::StatusCode::kInvalidArgument, "INVALID_REQUEST"))
        << spec;
  }
}

TEST(FailpointsTest, EachHasANameOfItsOwn) {
  EXPECT_EQ(std::set<absl::string_view>(std::begin(kFailpoints), std::end(kFailpoints)).size(),
            std::size(kFailpoints));
}

}  // namespace
}  // namespace ckptd
