#ifndef CKPTD_PROTO_STATUS_STATUS_MACROS_H_
#define CKPTD_PROTO_STATUS_STATUS_MACROS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Abseil has these itself from LTS 20260526 on; Debian 12's does not.

// Returns the error of `expr`, an absl::Status, from the enclosing function.
#define CKPTD_RETURN_IF_ERROR(expr)                                                  \
  do {                                                                               \
    if (absl::Status ckptd_status = (expr); !ckptd_status.ok()) return ckptd_status; \
  } while (false)

// Assigns the value of `expr`, an absl::StatusOr, to `lhs`, or returns its error.
#define CKPTD_ASSIGN_OR_RETURN(lhs, expr) \
  CKPTD_ASSIGN_OR_RETURN_(CKPTD_CONCAT_(status_or_, __LINE__), lhs, expr)
#define CKPTD_ASSIGN_OR_RETURN_(tmp, lhs, expr)  \
  auto tmp = (expr);                             \
  if (!tmp.ok()) return std::move(tmp).status(); \
  lhs = *std::move(tmp)
#define CKPTD_CONCAT_(a, b) CKPTD_CONCAT_INNER_(a, b)
#define CKPTD_CONCAT_INNER_(a, b) a##b

#endif  // CKPTD_PROTO_STATUS_STATUS_MACROS_H_
