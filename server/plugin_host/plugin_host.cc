#include "server/plugin_host/plugin_host.h"

#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "ckptd/v1/checkpoint.grpc.pb.h"
#include "client/cpp/core/mapping.h"
#include "client/cpp/core/unique_fd.h"
#include "plugins/safetensors/safetensors_plugin.h"
#include "plugins/torch/torch_plugin.h"
#include "plugins/xser/xser_plugin.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"
#include "proto/status/utf8.h"
#include "server/backend/backend.h"
#include "server/backend/call.h"
#include "server/backend/plugin_table.h"
#include "server/os/errors.h"
#include "server/plugin_host/probe.h"
#include "server/plugin_host/publish.h"
#include "server/queue/requests.h"

namespace ckptd {
namespace {

constexpr absl::Duration kBetweenReports = absl::Milliseconds(50);
constexpr int kFoundAtOnce = 1000;

// An image of the daemon's.
absl::StatusOr<Mapping> MapImage(const v1::Image& image, int protection) {
  const int access = (protection & PROT_WRITE) != 0 ? O_RDWR : O_RDONLY;
  const UniqueFd fd(open(image.path().c_str(), access | O_CLOEXEC));
  struct stat status = {};
  if (fd.get() < 0 || fstat(fd.get(), &status) != 0) {
    return OsError(image.path(), "open the image", errno);
  }
  if (status.st_ino != image.inode() || status.st_size < image.size_bytes()) {
    return MakeError(absl::StatusCode::kInternal, "INTERNAL",
                     absl::StrCat(image.path(), ": is not the image that the daemon meant"));
  }
  Mapping mapping(fd.get(), static_cast<size_t>(image.size_bytes()), protection, MAP_SHARED);
  if (!mapping.ok()) return OsError(image.path(), "map the image", errno);
  return mapping;
}

using Stream = grpc::ClientReaderWriter<v1::HostReport, v1::HostTask>;

// What several threads write to.
class Reports {
 public:
  explicit Reports(Stream* stream) : stream_(stream) {}
  void Write(const v1::HostReport& report) {
    absl::MutexLock lock(&mu_);
    stream_->Write(report);
  }

 private:
  absl::Mutex mu_;
  Stream* const stream_ ABSL_PT_GUARDED_BY(mu_);
};

// A task's call of the plugin.
class TaskCall : public ckptd_call {
 public:
  TaskCall(std::string task_id, Reports* reports)
      : task_id_(std::move(task_id)), reports_(reports) {}

  void Cancel() { cancelled_ = true; }
  void Answer(const v1::HostTask::Allocated& allocated) {
    absl::MutexLock lock(&mu_);
    allocated_ = allocated;
    answered_ = true;
  }

  void Log(int32_t level, absl::string_view message) override {
    static constexpr const char* kLevels[] = {"debug", "info", "warning", "error"};
    v1::HostReport report;
    report.mutable_log()->set_text(
        absl::StrCat(kLevels[level < 0 || level > 3 ? 1 : level], ": ", ToUtf8(message)));
    reports_->Write(report);
  }
  bool Progress(uint64_t bytes) override {
    written_ = bytes;
    Tell();
    return !cancelled_;
  }
  bool Cancelled() override { return cancelled_; }
  absl::Status Allocate(const ckptd_spec& spec, uint8_t** data) override;
  absl::Status PublishFile(const std::string& path, const ckptd_bytes* pieces,
                           size_t count) override {
    return ckptd::PublishFile(path, pieces, count, [this](uint64_t more) { return Add(more); });
  }
  absl::Status MakeFolder(const std::string& path, std::string* folder) override {
    CKPTD_ASSIGN_OR_RETURN(HiddenFolder made, MakeHiddenFolder(path));
    *folder = made.path;
    absl::MutexLock lock(&mu_);
    folders_.push_back(std::move(made));
    return absl::OkStatus();
  }
  absl::Status WriteFile(const std::string& path, const ckptd_bytes* pieces,
                         size_t count) override {
    return WriteFileIn(path, pieces, count, [this](uint64_t more) { return Add(more); });
  }
  absl::Status PublishFolder(const std::string& folder, const std::string& path) override {
    if (cancelled_) {
      return MakeError(absl::StatusCode::kCancelled, "CANCELLED_BY_REQUEST",
                       absl::StrCat(path, ": was cancelled before it was published"));
    }
    absl::MutexLock lock(&mu_);
    return ckptd::PublishFolder(folders_, folder, path);
  }
  absl::Status RemovePath(const std::string& path) override { return RemoveDurably(path); }
  absl::Status Found(const ckptd_tensor& tensor) override;
  // Reports the tensors that were found since it was last called.
  void TellFound();

  // What was not published goes.
  void RemoveFolders() {
    absl::MutexLock lock(&mu_);
    for (const HiddenFolder& folder : folders_) (void)RemoveDurably(folder.path);
    folders_.clear();
  }

 private:
  bool Add(uint64_t more) {
    written_ += more;
    Tell();
    return !cancelled_;
  }
  void Tell() {
    {
      absl::MutexLock lock(&mu_);
      const absl::Time now = absl::Now();
      if (now < next_report_) return;
      next_report_ = now + kBetweenReports;
    }
    v1::HostReport report;
    report.mutable_progress()->set_task_id(task_id_);
    report.mutable_progress()->set_persisted_bytes(static_cast<int64_t>(written_.load()));
    reports_->Write(report);
  }

  const std::string task_id_;
  Reports* const reports_;
  std::atomic<bool> cancelled_{false};
  std::atomic<uint64_t> written_{0};
  absl::Mutex mu_;
  absl::Time next_report_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  std::vector<HiddenFolder> folders_ ABSL_GUARDED_BY(mu_);
  bool answered_ ABSL_GUARDED_BY(mu_) = false;
  v1::HostTask::Allocated allocated_ ABSL_GUARDED_BY(mu_);
  v1::HostReport found_ ABSL_GUARDED_BY(mu_);
  Mapping mapping_;
};

// A message that holds anything else would end the stream.
absl::Status CheckText(const CheckpointSpec& spec) {
  std::vector<absl::string_view> texts;
  for (const CheckpointSpec::Tensor& tensor : spec.tensors) {
    texts.insert(texts.end(), {tensor.name, tensor.dtype});
  }
  for (const auto& [key, value] : spec.options) texts.insert(texts.end(), {key, value});
  for (const absl::string_view text : texts) {
    if (ToUtf8(text) == text) continue;
    return MakeError(absl::StatusCode::kInvalidArgument, "INVALID_TENSOR",
                     absl::StrCat("host->allocate: '", text,
                                  "' is not UTF-8, as names, dtypes and options must be"));
  }
  return absl::OkStatus();
}

absl::Status TaskCall::Allocate(const ckptd_spec& spec, uint8_t** data) {
  v1::HostReport report;
  v1::HostReport::Allocate* wanted = report.mutable_allocate();
  wanted->set_task_id(task_id_);
  const CheckpointSpec copy = SpecFromC(spec);
  CKPTD_RETURN_IF_ERROR(CheckText(copy));
  for (const CheckpointSpec::Tensor& tensor : copy.tensors) {
    v1::TensorSpec* told = wanted->add_tensors();
    told->set_name(tensor.name);
    told->set_dtype(tensor.dtype);
    for (const int64_t size : tensor.shape) told->add_shape(size);
    told->set_size_bytes(static_cast<int64_t>(tensor.size_bytes));
  }
  for (const auto& [key, value] : copy.options) (*wanted->mutable_options())[key] = value;
  reports_->Write(report);
  v1::HostTask::Allocated given;
  {
    absl::MutexLock lock(&mu_);
    mu_.Await(absl::Condition(&answered_));
    given = allocated_;
  }
  CKPTD_RETURN_IF_ERROR(FromRpc(given.error()));
  if (static_cast<size_t>(given.tensor_offsets_size()) != spec.tensor_count) {
    return MakeError(absl::StatusCode::kInternal, "INTERNAL",
                     "host->allocate: the daemon answered for another number of tensors");
  }
  CKPTD_ASSIGN_OR_RETURN(mapping_, MapImage(given.image(), PROT_READ | PROT_WRITE));
  for (size_t i = 0; i < spec.tensor_count; ++i) {
    data[i] = mapping_.data() + given.tensor_offsets(static_cast<int>(i));
  }
  return absl::OkStatus();
}

absl::Status TaskCall::Found(const ckptd_tensor& tensor) {
  bool enough = false;
  {
    absl::MutexLock lock(&mu_);
    v1::TensorSpec* told = found_.mutable_found()->add_tensors();
    told->set_name(ToUtf8(tensor.name));
    told->set_dtype(ToUtf8(tensor.dtype));
    for (size_t i = 0; i < tensor.rank; ++i) told->add_shape(tensor.shape[i]);
    told->set_size_bytes(static_cast<int64_t>(tensor.size_bytes));
    enough = found_.found().tensors_size() >= kFoundAtOnce;
  }
  if (enough) TellFound();
  if (!cancelled_) return absl::OkStatus();
  return absl::CancelledError(absl::StrCat("tensor ", tensor.name, ": the call was cancelled"));
}

void TaskCall::TellFound() {
  v1::HostReport report;
  {
    absl::MutexLock lock(&mu_);
    if (!found_.has_found()) return;
    std::swap(report, found_);
  }
  report.mutable_found()->set_task_id(task_id_);
  reports_->Write(report);
}

// Does tasks, one at a time, while the stream is read on.
class PluginTasks {
 public:
  PluginTasks(const ckptd_backend& table, Reports* reports) : table_(table), reports_(reports) {}
  ~PluginTasks() { Join(); }

  // What the plugin has said to its settings, before there are tasks: where it does not take them,
  // that is the error of each.
  void Configured(absl::Status status) { configured_ = std::move(status); }
  void Handle(const v1::HostTask& task);

 private:
  void Join() {
    if (thread_.joinable()) thread_.join();
  }
  void Do(const v1::HostTask& task, TaskCall* call);
  absl::Status Try(const v1::HostTask& task, TaskCall* call);
  absl::Status Save(const v1::HostTask::Save& save, TaskCall* call);
  absl::Status Look(const v1::HostTask& task, TaskCall* call);

  const ckptd_backend table_;
  Reports* const reports_;
  std::unique_ptr<TaskCall> call_;
  std::thread thread_;
  absl::Status configured_;
};

void PluginTasks::Handle(const v1::HostTask& task) {
  switch (task.task_case()) {
    case v1::HostTask::kCancel:
      if (call_ != nullptr) call_->Cancel();
      return;
    case v1::HostTask::kAllocated:
      if (call_ != nullptr) call_->Answer(task.allocated());
      return;
    default:
      // The one before has been answered, or there would be none.
      Join();
      call_ = std::make_unique<TaskCall>(task.task_id(), reports_);
      thread_ = std::thread([this, task, call = call_.get()] { Do(task, call); });
  }
}

void PluginTasks::Do(const v1::HostTask& task, TaskCall* call) {
  const absl::Status status = Try(task, call);
  call->RemoveFolders();
  v1::HostReport report;
  report.mutable_done()->set_task_id(task.task_id());
  if (!status.ok()) *report.mutable_done()->mutable_status() = ToRpc(status);
  reports_->Write(report);
}

absl::Status PluginTasks::Try(const v1::HostTask& task, TaskCall* call) {
  CKPTD_RETURN_IF_ERROR(configured_);
  if (task.has_save()) return Save(task.save(), call);
  if (task.has_load() && table_.load != nullptr) {
    return CallStatus(
        table_.load(PluginHost(), call, task.load().path().c_str(), task.load().verify() ? 1 : 0),
        *call);
  }
  if (task.has_remove()) {
    return CallStatus(table_.remove(PluginHost(), call, task.remove().path().c_str()), *call);
  }
  return Look(task, call);
}

absl::Status PluginTasks::Look(const v1::HostTask& task, TaskCall* call) {
  if (task.has_verify() && table_.verify != nullptr) {
    return CallStatus(table_.verify(PluginHost(), call, task.verify().path().c_str()), *call);
  }
  if (task.has_inspect() && table_.inspect != nullptr) {
    absl::Status status =
        CallStatus(table_.inspect(PluginHost(), call, task.inspect().path().c_str()), *call);
    call->TellFound();
    return status;
  }
  return absl::UnimplementedError("host process: the daemon asks for a task that it does not know");
}

absl::Status PluginTasks::Save(const v1::HostTask::Save& save, TaskCall* call) {
  const CheckpointSpec spec = ToSpec(save.request());
  // As the daemon has planned it: the same spec has the same plan.
  CKPTD_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> layout,
                         Backend::Create(NamedTensorsPlugin()));
  CKPTD_ASSIGN_OR_RETURN(const std::unique_ptr<Plan> plan, layout->MakePlan(spec));
  if (plan->file_bytes() != static_cast<uint64_t>(save.image().size_bytes())) {
    return MakeError(absl::StatusCode::kInternal, "INTERNAL",
                     "host process: it and the daemon are not of the same version");
  }
  CKPTD_ASSIGN_OR_RETURN(const Mapping image, MapImage(save.image(), PROT_READ));
  SpecInC c_spec(spec);
  c_spec.SetData(image.data(), plan->tensor_offsets());
  umask(save.request().umask() & 0777);
  const char* path = save.request().path().c_str();
  absl::Status status = CallStatus(table_.save(PluginHost(), call, path, c_spec.get()), *call);
  if (table_.publish == nullptr) return status;
  const bool keep = status.ok() && !call->Cancelled();
  absl::Status published =
      CallStatus(table_.publish(PluginHost(), call, path, keep ? 1 : 0), *call);
  if (!status.ok()) return status;
  if (!keep) {
    return MakeError(absl::StatusCode::kCancelled, "CANCELLED_BY_REQUEST",
                     absl::StrCat(path, ": was cancelled before it was published"));
  }
  return published;
}

std::string Environment(const char* name) {
  // NOLINTNEXTLINE(concurrency-mt-unsafe): before any thread could change it
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

void EndWithInput() {
  std::thread([] {
    char byte = 0;
    for (;;) {
      const ssize_t got = read(STDIN_FILENO, &byte, 1);
      if (got == 0 || (got < 0 && errno != EINTR)) std::_Exit(0);
    }
  }).detach();
}

// The plugin in `file`, or the backend that is built in and has that name.
absl::StatusOr<ckptd_backend> TableOf(const std::string& file) {
  for (const ckptd_backend* plugin :
       {TorchPlugin(), XlaPlugin(), SafetensorsPlugin(), XserPlugin()}) {
    if (file == plugin->name) return *plugin;
  }
  return LoadPlugin(file);
}

}  // namespace

int RunPluginHost(const std::string& file) {
  EndWithInput();
  const absl::StatusOr<ckptd_backend> table = TableOf(file);
  if (!table.ok()) {
    std::fprintf(stderr, "%s\n", std::string(table.status().message()).c_str());
    return 1;
  }
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  auto stub = v1::CheckpointService::NewStub(grpc::CreateCustomChannel(
      Environment("CKPTD_ADDRESS"), grpc::InsecureChannelCredentials(), arguments));
  grpc::ClientContext context;
  const std::unique_ptr<Stream> stream = stub->AttachHost(&context);
  Reports reports(stream.get());
  v1::HostReport hello;
  hello.mutable_attach()->set_host(Environment("CKPTD_HOST_ID"));
  hello.mutable_attach()->set_pid(getpid());
  reports.Write(hello);
  PluginTasks tasks(*table, &reports);
  v1::HostTask task;
  while (stream->Read(&task)) {
    if (!task.has_setup()) {
      tasks.Handle(task);
    } else {
      tasks.Configured(Configure(*table, task.setup().payload()));
    }
  }
  // What the plugin does is of use to nobody any more, and may never end.
  const grpc::Status end = stream->Finish();
  std::fflush(nullptr);
  std::_Exit(end.ok() ? 0 : 1);
}

}  // namespace ckptd
