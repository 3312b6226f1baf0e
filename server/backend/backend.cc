#include "server/backend/backend.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "server/backend/call.h"
#include "server/backend/plugin_table.h"

namespace ckptd {
namespace {

// A seal, which may be stopped.
struct SealCall : ckptd_call {
  explicit SealCall(const Backend::Sealed* sealed) : sealed_(sealed) {}
  bool Progress(uint64_t bytes) override { return (*sealed_)(bytes); }

 private:
  const Backend::Sealed* const sealed_;
};

absl::Status ToStatus(ckptd_code code, const ckptd_call& call) {
  return CallStatus(code, call, code == CKPTD_INVALID_ARGUMENT ? "INVALID_TENSOR" : "INTERNAL");
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
      tensor_offsets_(layout.tensor_offsets, layout.tensor_offsets + tensor_count),
      late_bytes_(layout.late_bytes) {}

Plan::~Plan() { backend_->plugin_->plan_free(plan_); }

absl::StatusOr<std::unique_ptr<Backend>> Backend::Create(const ckptd_backend* plugin, Host host) {
  CKPTD_RETURN_IF_ERROR(CheckBuiltInTable(*plugin));
  return std::unique_ptr<Backend>(
      new Backend(plugin, DescribeTable(*plugin), /*hosted=*/false, std::move(host)));
}

std::unique_ptr<Backend> Backend::OfPython(const ckptd_backend* image_plugin) {
  Description description;
  description.name = std::string(kPythonBackend);
  description.version = image_plugin->version;
  description.capabilities = {"hosted", "object"};
  description.loads = false;
  return std::unique_ptr<Backend>(
      new Backend(image_plugin, std::move(description), /*hosted=*/true, Host()));
}

std::unique_ptr<Backend> Backend::OfFile(const ckptd_backend* image_plugin, Description description,
                                         Host host) {
  return std::unique_ptr<Backend>(
      new Backend(image_plugin, std::move(description), /*hosted=*/true, std::move(host)));
}

std::unique_ptr<Backend> Backend::OfHost(const ckptd_backend* image_plugin,
                                         const ckptd_backend& table, Host host) {
  Description description = DescribeTable(table);
  description.loads = table.load != nullptr;
  return OfFile(image_plugin, std::move(description), std::move(host));
}

bool Backend::Can(absl::string_view capability) const {
  return std::find(capabilities().begin(), capabilities().end(), capability) !=
         capabilities().end();
}

bool Backend::takes_object() const { return (plugin_->flags & CKPTD_TAKES_OBJECT) != 0; }

absl::StatusOr<std::unique_ptr<Plan>> Backend::MakePlan(const CheckpointSpec& spec) const {
  CKPTD_RETURN_IF_ERROR(CheckStrings(spec));
  const SpecInC c_spec(spec);
  ckptd_layout layout = {sizeof(ckptd_layout), 0, 0, nullptr, 0};
  ckptd_plan* plan = nullptr;
  ckptd_call call;
  CKPTD_RETURN_IF_ERROR(
      ToStatus(plugin_->plan(PluginHost(), &call, c_spec.get(), &plan, &layout), call));
  auto result = std::make_unique<Plan>(this, plan, layout, spec.tensors.size());
  CKPTD_RETURN_IF_ERROR(CheckLayout(name(), spec, layout));
  return result;
}

absl::Status Backend::Seal(const Plan& plan, uint8_t* image, const Sealed& sealed) const {
  SealCall call(&sealed);
  return ToStatus(plugin_->seal(PluginHost(), &call, plan.plan_, image), call);
}

absl::Status BackendRegistry::Add(const ckptd_backend* plugin, Backend::Host host) {
  CKPTD_ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend,
                         Backend::Create(plugin, std::move(host)));
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

std::vector<const Backend*> BackendRegistry::All() const {
  std::vector<const Backend*> all;
  all.reserve(backends_.size());
  for (const auto& entry : backends_) all.push_back(entry.second.get());
  return all;
}

}  // namespace ckptd
