// The session that calls of the C++ client stand on, against the real daemon.

#include "client/cpp/core/link.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "proto/status/error_info.h"
#include "tests/client_cpp/test_daemon.h"
#include "tests/server/testing/status_matchers.h"
#include "tests/server/testing/wait.h"

namespace ckptd {
namespace {

class LinkTest : public testing::Test {
 protected:
  // Runs a call that fails `failures` times with `status`. The sessions that it got.
  std::vector<std::string> Sessions(int failures, const absl::Status& status) {
    std::vector<std::string> sessions;
    last_ = link_.WithSession(Soon(), [&](Session& session) {
      sessions.push_back(session.id());
      return static_cast<int>(sessions.size()) <= failures ? status : absl::OkStatus();
    });
    return sessions;
  }

  TestDaemon daemon_;
  Link link_{{daemon_.address(), "host:1 test", absl::Seconds(60), nullptr}};
  absl::Status last_;
};

TEST_F(LinkTest, WhatTheDaemonDoesNotKnowIsBegunAgainInAnotherSession) {
  for (const char* reason : {"SESSION_NOT_FOUND", "SAVE_NOT_FOUND", "LOAD_NOT_FOUND"}) {
    const auto sessions = Sessions(
        1, MakeError(absl::StatusCode::kNotFound, reason, "save x: the daemon does not know it"));
    EXPECT_OK(last_) << reason;
    ASSERT_EQ(sessions.size(), 2u) << reason;
    EXPECT_NE(sessions[0], sessions[1]) << reason;
  }
}

TEST_F(LinkTest, WhatNoDaemonKnowsIsAnErrorInTheEnd) {
  const auto sessions = Sessions(1000, MakeError(absl::StatusCode::kNotFound, "SAVE_NOT_FOUND",
                                                 "save x: the daemon does not know it"));
  EXPECT_THAT(last_, IsError(absl::StatusCode::kNotFound, "SAVE_NOT_FOUND"));
  EXPECT_EQ(sessions.size(), 3u);
}

TEST_F(LinkTest, AnyOtherErrorIsTheCallers) {
  const auto sessions = Sessions(1, MakeError(absl::StatusCode::kInvalidArgument, "INVALID_TENSOR",
                                              "tensor 0: has no name, and must have one"));
  EXPECT_THAT(last_, IsError(absl::StatusCode::kInvalidArgument, "INVALID_TENSOR"));
  EXPECT_EQ(sessions.size(), 1u);
}

}  // namespace
}  // namespace ckptd
