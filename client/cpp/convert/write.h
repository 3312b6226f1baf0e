#ifndef CKPTD_CLIENT_CPP_CONVERT_WRITE_H_
#define CKPTD_CLIENT_CPP_CONVERT_WRITE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "client/cpp/convert/state.h"
#include "client/cpp/core/connection.h"

namespace ckptd {

// Each fills in what is to be saved of a state, which must outlive `spec`, for the backend that
// `spec` names. Messages begin with `name`.

// As named tensors, by the names that ckptd.save gives them. NOT_CONVERTIBLE for numbers and text
// that JSON has no place for.
absl::Status WriteNamed(absl::string_view name, const State& state, SaveSpec* spec);

// As a pickle and its storages. Metadata have no place in it. NOT_CONVERTIBLE for a dtype that
// torch does not have.
absl::Status WriteTorch(absl::string_view name, const State& state, SaveSpec* spec);

}  // namespace ckptd

#endif  // CKPTD_CLIENT_CPP_CONVERT_WRITE_H_
