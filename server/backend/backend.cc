#include "server/backend/backend.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"

// The host's halves of the ABI's opaque types.
struct ckptd_error {
  std::string message;
};
struct ckptd_progress {
  const ckptd::Backend::Sealed* sealed;
};

namespace ckptd {
namespace {

void SetError(ckptd_error* error, const char* message, size_t length) {
  error->message.assign(message, length);
}

int32_t Sealed(ckptd_progress* progress, uint64_t length) {
  return (*progress->sealed)(length) ? 0 : 1;
}

constexpr ckptd_host kHost = {sizeof(ckptd_host), SetError, Sealed};

absl::Status ToStatus(ckptd_code code, const ckptd_error& error) {
  if (code == CKPTD_OK) return absl::OkStatus();
  const auto status_code = static_cast<absl::StatusCode>(code);
  absl::string_view reason = "INTERNAL";
  if (status_code == absl::StatusCode::kInvalidArgument) reason = "INVALID_TENSOR";
  if (status_code == absl::StatusCode::kCancelled) reason = "CANCELLED_BY_REQUEST";
  return MakeError(status_code, reason, error.message);
}

// C's strings end at a zero byte: two names would become one.
absl::Status CheckStrings(const CheckpointSpec& spec) {
  const auto has_zero = [](const std::string& text) {
    return text.find('\0') != std::string::npos;
  };
  for (size_t i = 0; i < spec.tensors.size(); ++i) {
    if (!has_zero(spec.tensors[i].name) && !has_zero(spec.tensors[i].dtype)) continue;
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_TENSOR",
                     absl::StrCat("tensor ", i, ": its name or dtype has a zero byte in it"));
  }
  for (const auto& [key, value] : spec.options) {
    if (!has_zero(key) && !has_zero(value)) continue;
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_TENSOR",
                     "options: one has a zero byte in it");
  }
  return absl::OkStatus();
}

// A layout must keep every payload inside the file: trainers write there.
absl::Status CheckLayout(absl::string_view backend, const CheckpointSpec& spec,
                         const ckptd_layout& layout) {
  auto inside = [&](uint64_t offset, uint64_t size) {
    return offset <= layout.file_bytes && size <= layout.file_bytes - offset;
  };
  bool ok = inside(layout.object_offset, spec.object_bytes);
  for (size_t i = 0; ok && i < spec.tensors.size(); ++i) {
    ok = inside(layout.tensor_offsets[i], spec.tensors[i].size_bytes);
  }
  if (ok) return absl::OkStatus();
  return MakeError(absl::StatusCode::kInternal, "INTERNAL",
                   absl::StrCat("backend ", backend,
                                ": planned a payload outside its own file; report it to the "
                                "author of the backend"));
}

}  // namespace

Plan::Plan(const Backend* backend, ckptd_plan* plan, const ckptd_layout& layout,
           size_t tensor_count)
    : backend_(backend),
      plan_(plan),
      file_bytes_(layout.file_bytes),
      object_offset_(layout.object_offset),
      tensor_offsets_(layout.tensor_offsets, layout.tensor_offsets + tensor_count) {}

Plan::~Plan() { backend_->plugin_->plan_free(plan_); }

absl::StatusOr<std::unique_ptr<Backend>> Backend::Create(const ckptd_plugin* plugin) {
  if (plugin->abi_major != CKPTD_PLUGIN_ABI_MAJOR) {
    return MakeError(
        absl::StatusCode::kFailedPrecondition, "INTERNAL",
        absl::StrCat("backend: was built for plugin ABI ", plugin->abi_major, ", this daemon has ",
                     CKPTD_PLUGIN_ABI_MAJOR, "; build it again against this daemon's plugin.h"));
  }
  if (plugin->size < sizeof(ckptd_plugin) || plugin->name == nullptr || plugin->plan == nullptr ||
      plugin->seal == nullptr || plugin->plan_free == nullptr) {
    return MakeError(absl::StatusCode::kFailedPrecondition, "INTERNAL",
                     "backend: its table lacks a name or a function that is required");
  }
  return std::unique_ptr<Backend>(new Backend(plugin, plugin->name, /*hosted=*/false));
}

std::unique_ptr<Backend> Backend::OfPython(const ckptd_plugin* image_plugin) {
  return std::unique_ptr<Backend>(new Backend(image_plugin, kPythonBackend, /*hosted=*/true));
}

absl::StatusOr<std::unique_ptr<Plan>> Backend::MakePlan(const CheckpointSpec& spec) const {
  CKPTD_RETURN_IF_ERROR(CheckStrings(spec));
  std::vector<ckptd_tensor> tensors;
  tensors.reserve(spec.tensors.size());
  for (const CheckpointSpec::Tensor& t : spec.tensors) {
    tensors.push_back(
        {t.name.c_str(), t.dtype.c_str(), t.shape.data(), t.shape.size(), t.size_bytes});
  }
  std::vector<ckptd_option> options;
  options.reserve(spec.options.size());
  for (const auto& [key, value] : spec.options) options.push_back({key.c_str(), value.c_str()});
  const ckptd_spec c_spec = {sizeof(ckptd_spec), spec.object_bytes, tensors.data(),
                             tensors.size(),     options.data(),    options.size()};
  ckptd_layout layout = {sizeof(ckptd_layout), 0, 0, nullptr};
  ckptd_plan* plan = nullptr;
  ckptd_error error;
  CKPTD_RETURN_IF_ERROR(ToStatus(plugin_->plan(&kHost, &c_spec, &plan, &layout, &error), error));
  auto result = std::make_unique<Plan>(this, plan, layout, spec.tensors.size());
  CKPTD_RETURN_IF_ERROR(CheckLayout(name(), spec, layout));
  return result;
}

absl::Status Backend::Seal(const Plan& plan, uint8_t* image, const Sealed& sealed) const {
  ckptd_progress progress = {&sealed};
  ckptd_error error;
  return ToStatus(plugin_->seal(&kHost, plan.plan_, image, &progress, &error), error);
}

absl::Status BackendRegistry::Add(const ckptd_plugin* plugin) {
  CKPTD_ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend, Backend::Create(plugin));
  return Add(std::move(backend));
}

absl::Status BackendRegistry::Add(std::unique_ptr<Backend> backend) {
  std::string name(backend->name());
  if (!backends_.emplace(name, std::move(backend)).second) {
    return MakeError(absl::StatusCode::kAlreadyExists, "INTERNAL",
                     absl::StrCat("backend ", name, ": is loaded twice"));
  }
  return absl::OkStatus();
}

absl::StatusOr<const Backend*> BackendRegistry::Find(absl::string_view name) const {
  auto it = backends_.find(std::string(name));
  if (it != backends_.end()) return it->second.get();
  return MakeError(absl::StatusCode::kNotFound, "BACKEND_NOT_FOUND",
                   absl::StrCat("backend '", name,
                                "': not here; this daemon has: ", absl::StrJoin(Names(), ", ")),
                   {{"backend", std::string(name)}});
}

std::vector<std::string> BackendRegistry::Names() const {
  std::vector<std::string> names;
  names.reserve(backends_.size());
  for (const auto& entry : backends_) names.push_back(entry.first);
  return names;
}

}  // namespace ckptd
