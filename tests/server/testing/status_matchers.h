#ifndef CKPTD_TESTS_SERVER_TESTING_STATUS_MATCHERS_H_
#define CKPTD_TESTS_SERVER_TESTING_STATUS_MATCHERS_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/status/error_info.h"

namespace ckptd {

inline absl::Status StatusOf(const absl::Status& status) { return status; }
template <typename T>
absl::Status StatusOf(const absl::StatusOr<T>& result) {
  return result.status();
}

// For absl::Status and absl::StatusOr.
MATCHER(IsOk, "is OK") {
  const absl::Status status = StatusOf(arg);
  *result_listener << status.ToString();
  return status.ok();
}

// An error with this code and ErrorInfo.reason, whose message says more than a word or two.
MATCHER_P2(IsError, code, reason, "") {
  const absl::Status status = StatusOf(arg);
  *result_listener << status.ToString() << " with reason '" << ReasonOf(status) << "'";
  return status.code() == code && ReasonOf(status) == reason && status.message().size() > 20;
}

// One whose message contains `text`.
MATCHER_P(Says, text, "") {
  const absl::Status status = StatusOf(arg);
  *result_listener << status.ToString();
  return std::string(status.message()).find(text) != std::string::npos;
}

}  // namespace ckptd

#define ASSERT_OK(expr) ASSERT_THAT(expr, ::ckptd::IsOk())
#define EXPECT_OK(expr) EXPECT_THAT(expr, ::ckptd::IsOk())

// Assigns the value of `expr`, an absl::StatusOr, to `lhs`, or fails the test and returns.
#define ASSERT_OK_AND_ASSIGN(lhs, expr) \
  ASSERT_OK_AND_ASSIGN_(CKPTD_TEST_CONCAT_(test_result_, __LINE__), lhs, expr)
#define ASSERT_OK_AND_ASSIGN_(tmp, lhs, expr) \
  auto tmp = (expr);                          \
  ASSERT_OK(tmp);                             \
  lhs = *std::move(tmp)
#define CKPTD_TEST_CONCAT_(a, b) CKPTD_TEST_CONCAT_INNER_(a, b)
#define CKPTD_TEST_CONCAT_INNER_(a, b) a##b

#endif  // CKPTD_TESTS_SERVER_TESTING_STATUS_MATCHERS_H_
