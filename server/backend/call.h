#ifndef CKPTD_SERVER_BACKEND_CALL_H_
#define CKPTD_SERVER_BACKEND_CALL_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "plugins/abi/plugin.h"

// The host's half of the ABI's opaque type: one call of a plugin's function, and what it may ask
// for meanwhile. A call answers what is not overridden with UNIMPLEMENTED. Threads are the
// plugin's; what an overrider does must bear several at once.
struct ckptd_call {
 public:
  ckptd_call() = default;
  virtual ~ckptd_call() = default;
  ckptd_call(const ckptd_call&) = delete;
  ckptd_call& operator=(const ckptd_call&) = delete;

  // What set_error was last told.
  const std::string& error() const { return error_; }
  void set_error(absl::string_view message) { error_ = std::string(message); }

  // As the functions of ckptd_host of these names. Progress returns whether to go on.
  virtual void Log(int32_t level, absl::string_view message);
  virtual bool Progress(uint64_t bytes) { return !Cancelled(); }
  virtual bool Cancelled() { return false; }
  virtual absl::Status Allocate(const ckptd_spec& spec, uint8_t** data);
  virtual absl::Status PublishFile(const std::string& path, const ckptd_bytes* pieces,
                                   size_t count);
  virtual absl::Status MakeFolder(const std::string& path, std::string* folder);
  virtual absl::Status WriteFile(const std::string& path, const ckptd_bytes* pieces, size_t count);
  virtual absl::Status PublishFolder(const std::string& folder, const std::string& path);
  virtual absl::Status RemovePath(const std::string& path);
  virtual absl::Status Found(const ckptd_tensor& tensor);

 private:
  std::string error_;
};

namespace ckptd {

// The table that plugins get, for all calls.
const ckptd_host* PluginHost();

// What a plugin's function has returned, and said. `reason` where the code has none of its own.
absl::Status CallStatus(ckptd_code code, const ckptd_call& call,
                        absl::string_view reason = "BACKEND_FAILED");

}  // namespace ckptd

#endif  // CKPTD_SERVER_BACKEND_CALL_H_
