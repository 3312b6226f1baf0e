#ifndef CKPTD_SERVER_OS_MEMORY_LIMIT_H_
#define CKPTD_SERVER_OS_MEMORY_LIMIT_H_

#include <cstdint>
#include <string>

namespace ckptd {

// The most memory this process may use, in bytes: the smaller of RAM and the limit of its control
// group and those above it (version 2 or 1). `root` is "/" but in tests.
uint64_t MemoryLimit(const std::string& root);

}  // namespace ckptd

#endif  // CKPTD_SERVER_OS_MEMORY_LIMIT_H_
