#include <cstdio>

#include "client/cpp/core/connection.h"
#include "proto/status/error_info.h"

// No daemon is there: the error says so, and carries no reason of a daemon's.
int main() {
  const auto connection = ckptd::Connection::Open({});
  std::puts(connection.status().ToString().c_str());
  return absl::IsUnavailable(connection.status()) && ckptd::ReasonOf(connection.status()).empty()
             ? 0
             : 1;
}
