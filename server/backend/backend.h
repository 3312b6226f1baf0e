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
  // As many bytes at the front become final last, when all are.
  uint64_t late_bytes() const { return late_bytes_; }

 private:
  friend class Backend;
  const Backend* backend_;
  ckptd_plan* plan_;
  uint64_t file_bytes_;
  uint64_t object_offset_;
  std::vector<uint64_t> tensor_offsets_;
  uint64_t late_bytes_;
};

// The name of the backend whose host processes are its clients' own.
inline constexpr absl::string_view kPythonBackend = "python";

// A backend as the daemon knows it: what plans and seals its images, and who writes them.
// Thread-safe. Lives as long as the daemon.
class Backend {
 public:
  // Told the number of bytes, from the front, that are final, but for the plan's late bytes until
  // it is told the size of the file; returns false to stop the seal.
  using Sealed = std::function<bool(uint64_t)>;

  // How the daemon starts the process in which a backend's functions run: with the daemon's own
  // environment, and with `payload` for HostTask.Setup.
  struct Host {
    std::vector<std::string> argv;
    std::string payload;
  };

  // What a plugin in a file says of itself, as a probe of it has found.
  struct Description {
    std::string name;
    std::string version;
    std::vector<std::string> capabilities;
    std::string file;
    bool loads = true;
  };

  // One that is built in; what reads checkpoints for people runs in the process that `host` starts.
  // Refuses a table of another major version, or one that lacks a function.
  static absl::StatusOr<std::unique_ptr<Backend>> Create(const ckptd_backend* plugin,
                                                         Host host = {});
  // The backend "python": images are those of `image_plugin`, which must be one that takes an
  // object, and a host process of the client's (hosts.h) writes them.
  static std::unique_ptr<Backend> OfPython(const ckptd_backend* image_plugin);
  // One in a file: images are those of `image_plugin`, which must be one that takes named tensors,
  // and the process that `host` starts writes them.
  static std::unique_ptr<Backend> OfFile(const ckptd_backend* image_plugin, Description description,
                                         Host host);
  // One that is built in and does its saves and removals in the process that `host` starts.
  static std::unique_ptr<Backend> OfHost(const ckptd_backend* image_plugin,
                                         const ckptd_backend& table, Host host);

  const std::string& name() const { return description_.name; }
  // The plugin's own.
  const std::string& version() const { return description_.version; }
  // As v1::BackendStatus has them.
  const std::vector<std::string>& capabilities() const { return description_.capabilities; }
  // Where it was loaded from; empty for one that is built in.
  const std::string& file() const { return description_.file; }
  // Whether a save consists of a serialized object and storages rather than named tensors.
  bool takes_object() const;
  // Whether saves, loads and removals are done by a host process rather than by the daemon.
  bool hosted() const { return hosted_; }
  // Whether it is among capabilities().
  bool Can(absl::string_view capability) const;
  // Null where the daemon starts none, as for "python", whose hosts its clients register.
  const Host* host() const { return host_.argv.empty() ? nullptr : &host_; }
  // Whether the daemon or its host reads checkpoints; otherwise clients do by themselves.
  bool loads() const { return description_.loads; }

  // Errors: INVALID_TENSOR where a string has a zero byte in it, what the plugin says, or INTERNAL
  // where its layout lies outside its own file.
  absl::StatusOr<std::unique_ptr<Plan>> MakePlan(const CheckpointSpec& spec) const;

  // Writes what is not payload into the `plan.file_bytes()` bytes at `image`, front to back.
  // CANCELLED when `sealed` returned false.
  absl::Status Seal(const Plan& plan, uint8_t* image, const Sealed& sealed) const;

 private:
  friend class Plan;
  Backend(const ckptd_backend* plugin, Description description, bool hosted, Host host)
      : plugin_(plugin),
        description_(std::move(description)),
        hosted_(hosted),
        host_(std::move(host)) {}
  const ckptd_backend* const plugin_;
  const Description description_;
  const bool hosted_;
  const Host host_;
};

// The backends by name. Filled at start, read-only afterwards.
class BackendRegistry {
 public:
  // Makes a backend of a plugin (Create), and adds it.
  absl::Status Add(const ckptd_backend* plugin, Backend::Host host = {});
  // ALREADY_EXISTS where there is one of that name.
  absl::Status Add(std::unique_ptr<Backend> backend);

  // NOT_FOUND names those there are.
  absl::StatusOr<const Backend*> Find(absl::string_view name) const;
  std::vector<std::string> Names() const;
  // In the order of Names.
  std::vector<const Backend*> All() const;

 private:
  std::map<std::string, std::unique_ptr<Backend>> backends_;
};

}  // namespace ckptd

#endif  // CKPTD_SERVER_BACKEND_BACKEND_H_
