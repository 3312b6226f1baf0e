#ifndef CKPTD_SERVER_PERSIST_NAMES_H_
#define CKPTD_SERVER_PERSIST_NAMES_H_

#include <string>

namespace ckptd {

// A new name for a file of ours beside a target, for the instant of an overwrite:
// ".ckptd-" and 16 random hexadecimal digits.
std::string MakeTempName();

}  // namespace ckptd

#endif  // CKPTD_SERVER_PERSIST_NAMES_H_
