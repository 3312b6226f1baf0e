#ifndef CKPTD_TESTS_SERVER_TESTING_FAKE_BACKEND_H_
#define CKPTD_TESTS_SERVER_TESTING_FAKE_BACKEND_H_

#include "plugins/abi/plugin.h"

namespace ckptd {

// A backend "raw": the file is the object, then the tensors one behind another, and nothing else.
// Takes one option, which sets a trap:
//   trap=refuse       plan answers OUT_OF_RANGE
//   trap=outside      the last tensor (or the object) ends one byte behind the file
//   trap=overflow     the object's offset is near 2^64
//   trap=seal         seal answers INTERNAL before it has told anything
const ckptd_backend* FakePlugin();

}  // namespace ckptd

#endif  // CKPTD_TESTS_SERVER_TESTING_FAKE_BACKEND_H_
