#ifndef CKPTD_SERVER_OS_RUNNABLE_H_
#define CKPTD_SERVER_OS_RUNNABLE_H_

namespace ckptd {

// How many threads of the machine run or want to at this moment, the caller included; 0 where the
// system does not tell.
int RunnableThreads();

}  // namespace ckptd

#endif  // CKPTD_SERVER_OS_RUNNABLE_H_
