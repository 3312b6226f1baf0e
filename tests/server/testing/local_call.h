#ifndef CKPTD_TESTS_SERVER_TESTING_LOCAL_CALL_H_
#define CKPTD_TESTS_SERVER_TESTING_LOCAL_CALL_H_

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "server/backend/call.h"
#include "server/backend/plugin_table.h"
#include "server/plugin_host/publish.h"

namespace ckptd {

// A plugin's call as its host process would serve it, in this one. Cancelled after that many bytes;
// has memory of its own for loads.
class LocalCall : public ckptd_call {
 public:
  explicit LocalCall(uint64_t cancel_after = ~uint64_t{0}) : left_(cancel_after) {}
  ~LocalCall() override {
    for (const HiddenFolder& folder : folders_) (void)RemoveDurably(folder.path);
  }
  LocalCall(const LocalCall&) = delete;
  LocalCall& operator=(const LocalCall&) = delete;

  absl::Status Allocate(const ckptd_spec& spec, uint8_t** data) override {
    loaded = SpecFromC(spec);
    for (size_t i = 0; i < spec.tensor_count; ++i) {
      memory.emplace_back(spec.tensors[i].size_bytes, '\0');
    }
    for (size_t i = 0; i < spec.tensor_count; ++i) {
      data[i] = reinterpret_cast<uint8_t*>(memory[i].data());
    }
    return absl::OkStatus();
  }
  bool Cancelled() override {
    on_step();
    return cancelled;
  }
  absl::Status PublishFile(const std::string& path, const ckptd_bytes* pieces,
                           size_t count) override {
    on_step();
    absl::Status status =
        ckptd::PublishFile(path, pieces, count, [this](uint64_t more) { return Add(more); });
    on_step();
    return status;
  }
  absl::Status MakeFolder(const std::string& path, std::string* folder) override {
    on_step();
    auto made = MakeHiddenFolder(path);
    if (!made.ok()) return made.status();
    *folder = made->path;
    folders_.push_back(*std::move(made));
    return absl::OkStatus();
  }
  absl::Status WriteFile(const std::string& path, const ckptd_bytes* pieces,
                         size_t count) override {
    on_step();
    return WriteFileIn(path, pieces, count, [this](uint64_t more) { return Add(more); });
  }
  absl::Status PublishFolder(const std::string& folder, const std::string& path) override {
    on_step();
    return ckptd::PublishFolder(folders_, folder, path);
  }
  absl::Status RemovePath(const std::string& path) override {
    on_step();
    absl::Status status = RemoveDurably(path);
    on_step();
    return status;
  }

  CheckpointSpec loaded;
  std::vector<std::string> memory;
  bool cancelled = false;
  // Called wherever the plugin calls.
  std::function<void()> on_step = [] {};

 private:
  bool Add(uint64_t more) {
    on_step();
    if (cancelled || more >= left_) return false;
    left_ -= more;
    return true;
  }

  uint64_t left_;
  std::vector<HiddenFolder> folders_;
};

}  // namespace ckptd

#endif  // CKPTD_TESTS_SERVER_TESTING_LOCAL_CALL_H_
