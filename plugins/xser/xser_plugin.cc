// How a checkpoint takes the place of another one:
//
//  1. Write each tensor to a file in a hidden folder beside PATH.tensors, and sync them.
//  2. Make PATH.tensors where it is not there, and sync the folder that it is in.
//  3. Rename the files into it, under names that the old checkpoint does not have; sync it.
//  4. Replace PATH at once, durably. Until here the old checkpoint is whole, from here on the new
//     one.
//  5. Remove the files that are not of the new one.
//
// What a death leaves is removed by the next save: the hidden folder in 1, tensors of nobody in 5.
#include "plugins/xser/xser_plugin.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "plugins/torch/pickle/tensor.h"
#include "plugins/torch/torch_plugin.h"
#include "plugins/xser/xser_checks.h"

namespace ckptd {
namespace {

constexpr std::string_view kObject = "object";
constexpr std::string_view kStorage = "data/";
constexpr std::string_view kKinds = "metadata.xser.kinds";
constexpr std::string_view kFolder = ".tensors";
constexpr std::string_view kPrefix = "tensor_";
constexpr std::string_view kSuffix = ".pt";
constexpr size_t kMaxPath = 4200;
constexpr size_t kMostFilesToSync = 100;
constexpr mode_t kFolderMode = 0777;

ckptd_code Fail(const ckptd_host* host, ckptd_call* call, ckptd_code code,
                const std::string& message) {
  host->set_error(call, message.data(), message.size());
  return code;
}

ckptd_code FailedToDo(const ckptd_host* host, ckptd_call* call, const std::string& path,
                      std::string_view what) {
  const int error = errno;
  const bool is_full = error == ENOSPC || error == EDQUOT;
  return Fail(host, call, is_full ? CKPTD_RESOURCE_EXHAUSTED : CKPTD_UNKNOWN,
              path + ": cannot " + std::string(what) + ": " + strerrordesc_np(error));
}

bool IsTensorFile(std::string_view name) {
  if (name.size() <= kPrefix.size() + kSuffix.size() || !name.starts_with(kPrefix) ||
      !name.ends_with(kSuffix)) {
    return false;
  }
  name = name.substr(kPrefix.size(), name.size() - kPrefix.size() - kSuffix.size());
  return std::all_of(name.begin(), name.end(), [](char c) { return c >= '0' && c <= '9'; });
}

ckptd_bytes BytesOf(const ckptd_tensor& tensor) {
  return {tensor.data, static_cast<size_t>(tensor.size_bytes)};
}

// A save, taken apart.
struct Parts {
  const ckptd_tensor* object = nullptr;
  std::vector<ckptd_bytes> storages;
  std::vector<const ckptd_tensor*> tensors;
  std::string_view kinds;
};

// A sentence about what is wrong; empty where nothing is.
std::string TakeApart(const ckptd_spec& spec, Parts* parts) {
  for (size_t i = 0; i < spec.option_count; ++i) {
    if (spec.options[i].key != kKinds) {
      return std::string("option '") + spec.options[i].key + "': xla-xser takes none of that name";
    }
    parts->kinds = spec.options[i].value;
  }
  for (size_t i = 0; i < spec.tensor_count; ++i) {
    const ckptd_tensor& tensor = spec.tensors[i];
    const std::string_view name = tensor.name;
    if (i == 0 && name == kObject && tensor.size_bytes > 0) {
      parts->object = &tensor;
    } else if (i > 0 && name == std::string(kStorage) + std::to_string(i - 1)) {
      parts->storages.push_back(BytesOf(tensor));
    } else if (i > 0 && IsTensorFile(name)) {
      parts->tensors.push_back(&tensor);
    } else {
      return std::string("tensor '") + tensor.name +
             "': xla-xser wants object, data/0, ..., and tensor_TID.pt, in that order; save with "
             "ckptd.save";
    }
  }
  if (parts->object == nullptr) return "tensors: xla-xser wants an object first";
  if (parts->kinds.size() != parts->tensors.size()) {
    return "option 'metadata.xser.kinds': must have one letter for each tensor";
  }
  return "";
}

ckptd_code WriteTensor(const ckptd_host* host, ckptd_call* call, const std::string& folder,
                       const ckptd_tensor& tensor, char kind) {
  PickledTensor pickled;
  pickled.storage = "0";
  pickled.dtype = tensor.dtype;
  pickled.shape.assign(tensor.shape, tensor.shape + tensor.rank);
  pickled.size_bytes = tensor.size_bytes;
  pickled.requires_grad = kind == 'g' || kind == 'p';
  pickled.is_parameter = kind == 'p' || kind == 'q';
  PickleWriter writer;
  if (!PickleTensor(pickled, writer)) {
    return Fail(host, call, CKPTD_INVALID_ARGUMENT,
                std::string("tensor '") + tensor.name + "': torch has no dtype " + tensor.dtype +
                    " of that size; leave it out");
  }
  const std::string pickle = writer.Finish();
  const TorchFilePieces file({pickle.data(), pickle.size()}, {BytesOf(tensor)});
  const std::string path = folder + "/" + tensor.name;
  return host->write_file(call, path.c_str(), file.pieces().data(), file.pieces().size());
}

ckptd_code SyncFolder(const ckptd_host* host, ckptd_call* call, const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return FailedToDo(host, call, path, "open the folder");
  const ckptd_code code =
      fsync(fd) == 0 ? CKPTD_OK : FailedToDo(host, call, path, "sync the folder");
  close(fd);
  return code;
}

// Each sync waits for the device; where they are many, one for the whole file system is quicker.
ckptd_code SyncTensors(const ckptd_host* host, ckptd_call* call, const std::string& folder,
                       const Parts& parts) {
  const int fd = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return FailedToDo(host, call, folder, "open the folder");
  bool synced = true;
  if (parts.tensors.size() > kMostFilesToSync) {
    synced = syncfs(fd) == 0;
  } else {
    for (const ckptd_tensor* tensor : parts.tensors) {
      const int file = openat(fd, tensor->name, O_RDONLY | O_CLOEXEC);
      synced = synced && file >= 0 && fsync(file) == 0;
      if (file >= 0) close(file);
    }
  }
  const ckptd_code code = synced ? CKPTD_OK : FailedToDo(host, call, folder, "sync what is in it");
  close(fd);
  return code;
}

// Steps 2 and 3.
ckptd_code MoveTensors(const ckptd_host* host, ckptd_call* call, const std::string& hidden,
                       const std::string& folder, const Parts& parts) {
  if (mkdir(folder.c_str(), kFolderMode) == 0) {
    const std::string above = folder.substr(0, folder.rfind('/'));
    const ckptd_code code = SyncFolder(host, call, above.empty() ? "/" : above);
    if (code != CKPTD_OK) return code;
  } else if (errno != EEXIST) {
    return FailedToDo(host, call, folder, "make the folder");
  }
  for (const ckptd_tensor* tensor : parts.tensors) {
    if (host->cancelled(call) != 0) {
      return Fail(host, call, CKPTD_CANCELLED, folder + ": the save to it was cancelled");
    }
    const std::string from = hidden + "/" + tensor->name;
    const std::string to = folder + "/" + tensor->name;
    if (rename(from.c_str(), to.c_str()) != 0) return FailedToDo(host, call, to, "put it there");
  }
  return SyncFolder(host, call, folder);
}

// Step 5. The new checkpoint is there already: what cannot be removed now, the next save does.
void RemoveOthers(const ckptd_host* host, ckptd_call* call, const std::string& folder,
                  const Parts& parts) {
  std::unordered_set<std::string_view> kept;
  for (const ckptd_tensor* tensor : parts.tensors) kept.insert(tensor->name);
  std::vector<std::string> others;
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(opendir(folder.c_str()), closedir);
  if (dir == nullptr) return;
  // NOLINTNEXTLINE(concurrency-mt-unsafe): a stream of this function's own
  while (const dirent* entry = readdir(dir.get())) {
    if (IsTensorFile(entry->d_name) && kept.count(entry->d_name) == 0) {
      others.emplace_back(entry->d_name);
    }
  }
  for (const std::string& name : others) {
    (void)host->cancelled(call);
    std::string path = folder;
    path.append("/").append(name);
    if (unlink(path.c_str()) == 0) continue;
    std::string message = path + ": is left over, and cannot be removed: ";
    message.append(strerrordesc_np(errno));
    host->log(call, 2, message.data(), message.size());
    return;
  }
}

// Whether the file at `path` is another one than `before`, which may be empty.
bool IsReplaced(const std::string& path, const struct stat& before) {
  struct stat now = {};
  (void)lstat(path.c_str(), &now);
  return now.st_dev != before.st_dev || now.st_ino != before.st_ino;
}

// A save that was done before, and is done again after a crash, has its files there already.
bool HasOne(const std::string& folder, const Parts& parts) {
  return std::any_of(parts.tensors.begin(), parts.tensors.end(), [&](const ckptd_tensor* tensor) {
    return access((folder + "/" + tensor->name).c_str(), F_OK) == 0;
  });
}

void RemoveMoved(const std::string& folder, const Parts& parts) {
  for (const ckptd_tensor* tensor : parts.tensors) unlink((folder + "/" + tensor->name).c_str());
  rmdir(folder.c_str());  // where nothing else is in it
}

ckptd_code SaveParts(const ckptd_host* host, ckptd_call* call, const std::string& path,
                     const Parts& parts) {
  const std::string folder = path + std::string(kFolder);
  struct stat status = {};
  if (lstat(folder.c_str(), &status) == 0 && !S_ISDIR(status.st_mode)) {
    return Fail(host, call, CKPTD_FAILED_PRECONDITION,
                folder + ": is no folder, and the tensors' files go there; remove it");
  }
  char hidden[kMaxPath];
  ckptd_code code = host->make_folder(call, folder.c_str(), hidden, sizeof(hidden));
  for (size_t i = 0; code == CKPTD_OK && i < parts.tensors.size(); ++i) {
    code = WriteTensor(host, call, hidden, *parts.tensors[i], parts.kinds[i]);
  }
  if (code == CKPTD_OK) code = SyncTensors(host, call, hidden, parts);
  if (code != CKPTD_OK) return code;
  struct stat before = {};
  (void)lstat(path.c_str(), &before);
  const bool is_again = HasOne(folder, parts);
  code = MoveTensors(host, call, hidden, folder, parts);
  if (code == CKPTD_OK) {
    const TorchFilePieces file(BytesOf(*parts.object), parts.storages);
    code = host->publish_file(call, path.c_str(), file.pieces().data(), file.pieces().size());
  }
  if (code == CKPTD_OK) {
    RemoveOthers(host, call, folder, parts);
  } else if (!is_again && !IsReplaced(path, before)) {
    RemoveMoved(folder, parts);
  }
  return code;
}

ckptd_code Save(const ckptd_host* host, ckptd_call* call, const char* path,
                const ckptd_spec* spec) {
  try {
    Parts parts;
    if (std::string why = TakeApart(*spec, &parts); !why.empty()) {
      return Fail(host, call, CKPTD_INVALID_ARGUMENT, why);
    }
    return SaveParts(host, call, path, parts);
  } catch (const std::exception& e) {
    return Fail(host, call, CKPTD_INTERNAL, std::string("xla-xser, save: ") + e.what());
  }
}

// The file first: tensors without it are nothing that anybody could load.
ckptd_code Remove(const ckptd_host* host, ckptd_call* call, const char* path) {
  const ckptd_code code = host->remove_path(call, path);
  if (code != CKPTD_OK) return code;
  return host->remove_path(call, (path + std::string(kFolder)).c_str());
}

ckptd_backend Table() {
  ckptd_backend table = {};
  table.size = sizeof(ckptd_backend);
  table.abi_major = CKPTD_PLUGIN_ABI_MAJOR;
  table.abi_minor = CKPTD_PLUGIN_ABI_MINOR;
  table.name = "xla-xser";
  table.version = CKPTD_VERSION;
  table.save = Save;
  table.remove = Remove;
  table.verify = VerifyXser;
  table.inspect = InspectXser;
  return table;
}

}  // namespace

const ckptd_backend* XserPlugin() {
  static const ckptd_backend table = Table();
  return &table;
}

}  // namespace ckptd
