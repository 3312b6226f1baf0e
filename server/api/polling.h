#ifndef CKPTD_SERVER_API_POLLING_H_
#define CKPTD_SERVER_API_POLLING_H_

namespace ckptd {

// Has connections polled at all times. gRPC leaves that to the threads that run callbacks, and in
// versions like 1.51 these nap for 100 ms after each second without a callback, most often all at
// once: a call that arrived then waited until they woke.
//
// It holds for the whole program, from its start on, where this is linked in, and does nothing
// where gRPC is no shared library.
void PollWithoutNaps();

}  // namespace ckptd

#endif  // CKPTD_SERVER_API_POLLING_H_
