#ifndef CKPTD_CLIENT_CPP_CORE_PROCESS_H_
#define CKPTD_CLIENT_CPP_CORE_PROCESS_H_

#include <cstdint>
#include <string>

namespace ckptd {

// The umask of this process, read from /proc without changing it: umask(2) can only be read by
// setting it, which another thread that creates a file would notice. 0022 where /proc is missing.
uint32_t CurrentUmask();

// How this process is named in Save.client: "host:pid program".
std::string DefaultClientName();

// `wanted`, else $CKPTD_JOB, else the launcher's id ($TORCHELASTIC_RUN_ID, $SLURM_JOB_ID), else one
// per process. What a job id may not hold becomes "-", and at most 63 characters are kept, as in
// the Python client. "none", which torchrun sets where it was given no id, is no id.
std::string JobId(const std::string& wanted);

// A save id that no other process returns, and no other `counter` in this one:
// "pid-counter-random".
std::string NewSaveId(uint64_t counter);

}  // namespace ckptd

#endif  // CKPTD_CLIENT_CPP_CORE_PROCESS_H_
