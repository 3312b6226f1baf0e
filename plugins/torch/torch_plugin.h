#ifndef CKPTD_PLUGINS_TORCH_TORCH_PLUGIN_H_
#define CKPTD_PLUGINS_TORCH_TORCH_PLUGIN_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "plugins/abi/plugin.h"

namespace ckptd {

// The backend "torch": the file is the zip that torch.save writes (2.7 and later), with archive
// name "archive". The object is data.pkl; tensors are storages, named "0", "1", ... in the order in
// which data.pkl names them. Takes no options.
const ckptd_backend* TorchPlugin();

// The backend "xla": what XLACheckpointIO writes, which is the same file. That it holds plain CPU
// tensors, and what becomes of containers, is the client's to see to.
const ckptd_backend* XlaPlugin();

// The same file where object and storages lie anywhere: they are not copied.
class TorchFilePieces {
 public:
  // What the arguments point to must outlive it. `object` must not be empty.
  TorchFilePieces(ckptd_bytes object, const std::vector<ckptd_bytes>& storages);
  // One behind another they are the file.
  const std::vector<ckptd_bytes>& pieces() const { return pieces_; }

 private:
  std::unique_ptr<uint8_t[]> around_;
  std::vector<ckptd_bytes> pieces_;
};

}  // namespace ckptd

#endif  // CKPTD_PLUGINS_TORCH_TORCH_PLUGIN_H_
