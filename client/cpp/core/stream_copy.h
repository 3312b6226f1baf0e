#ifndef CKPTD_CLIENT_CPP_CORE_STREAM_COPY_H_
#define CKPTD_CLIENT_CPP_CORE_STREAM_COPY_H_

#include <cstddef>

extern "C" {

// Copies `size_bytes` as memcpy does, past the processor's caches: what is written is not read
// first, which is a third of the traffic, and neither side takes the place of other data. For
// copies of more than a few MiB, whose end would push their beginning out of the cache anyway.
// The caller owns both sides, which do not overlap. Other threads see the copy as they would see
// that of memcpy. This is all that libckptd_copy has; its name and arguments stay as they are.
void ckptd_stream_copy(void* to, const void* from, size_t size_bytes);

}  // extern "C"

#endif  // CKPTD_CLIENT_CPP_CORE_STREAM_COPY_H_
