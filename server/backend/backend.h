#ifndef CKPTD_SERVER_BACKEND_BACKEND_H_
#define CKPTD_SERVER_BACKEND_BACKEND_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "plugins/abi/plugin.h"

namespace ckptd {

// What a checkpoint consists of, as its trainer announced it.
struct CheckpointSpec {
  struct Tensor {
    std::string name;
    std::string dtype;
    std::vector<int64_t> shape;
    uint64_t size_bytes = 0;
  };
  uint64_t object_bytes = 0;
  std::vector<Tensor> tensors;
  std::vector<std::pair<std::string, std::string>> options;
};

class Backend;

// Where everything goes in the finished file. Move-only; may outlive nothing but its backend.
class Plan {
 public:
  Plan(const Backend* backend, ckptd_plan* plan, const ckptd_layout& layout, size_t tensor_count);
  ~Plan();
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  uint64_t file_bytes() const { return file_bytes_; }
  uint64_t object_offset() const { return object_offset_; }
  // One for each tensor of the spec, in its order.
  const std::vector<uint64_t>& tensor_offsets() const { return tensor_offsets_; }

 private:
  friend class Backend;
  const Backend* backend_;
  ckptd_plan* plan_;
  uint64_t file_bytes_;
  uint64_t object_offset_;
  std::vector<uint64_t> tensor_offsets_;
};

// The name of the backend whose host processes are its clients' own.
inline constexpr absl::string_view kPythonBackend = "python";

// The host's side of a plugin. Thread-safe. Lives as long as the daemon.
class Backend {
 public:
  // Told the number of bytes, from the front, that are final; returns false to stop the seal.
  using Sealed = std::function<bool(uint64_t)>;

  // Refuses a table of another major version, or one that lacks a function.
  static absl::StatusOr<std::unique_ptr<Backend>> Create(const ckptd_plugin* plugin);
  // The backend "python": images are those of `image_plugin`, which must be one that takes an
  // object, and a host process of the client's (hosts.h) writes them.
  static std::unique_ptr<Backend> OfPython(const ckptd_plugin* image_plugin);

  absl::string_view name() const { return name_; }
  // Whether saves, loads and removals are done by a host process rather than by the daemon.
  bool hosted() const { return hosted_; }

  // Errors: INVALID_TENSOR where a string has a zero byte in it, what the plugin says, or INTERNAL
  // where its layout lies outside its own file.
  absl::StatusOr<std::unique_ptr<Plan>> MakePlan(const CheckpointSpec& spec) const;

  // Writes what is not payload into the `plan.file_bytes()` bytes at `image`, front to back.
  // CANCELLED when `sealed` returned false.
  absl::Status Seal(const Plan& plan, uint8_t* image, const Sealed& sealed) const;

 private:
  friend class Plan;
  Backend(const ckptd_plugin* plugin, absl::string_view name, bool hosted)
      : plugin_(plugin), name_(name), hosted_(hosted) {}
  const ckptd_plugin* const plugin_;
  const std::string name_;
  const bool hosted_;
};

// The backends by name. Filled at start, read-only afterwards.
class BackendRegistry {
 public:
  // Makes a backend of a plugin (Create), and adds it.
  absl::Status Add(const ckptd_plugin* plugin);
  // ALREADY_EXISTS where there is one of that name.
  absl::Status Add(std::unique_ptr<Backend> backend);

  // NOT_FOUND names those there are.
  absl::StatusOr<const Backend*> Find(absl::string_view name) const;
  std::vector<std::string> Names() const;

 private:
  std::map<std::string, std::unique_ptr<Backend>> backends_;
};

}  // namespace ckptd

#endif  // CKPTD_SERVER_BACKEND_BACKEND_H_
