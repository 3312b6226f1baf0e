#ifndef CKPTD_PLUGINS_SAFETENSORS_SAFETENSORS_PLUGIN_H_
#define CKPTD_PLUGINS_SAFETENSORS_SAFETENSORS_PLUGIN_H_

#include "plugins/abi/plugin.h"

namespace ckptd {

// The backend "safetensors": named tensors in a file that safetensors' own readers and
// transformers take. What the format has no place for is refused by its name: dtypes, and values
// that are no tensors. Tied tensors are noted in __metadata__, and so are a checksum, what is the
// user's (metadata.KEY), and how names nest where dots do not tell.
const ckptd_backend* SafetensorsPlugin();

// The layout of images whose file somebody else writes: the same, with whatever there is. A dtype
// that the format does not know has torch's name, and values are noted in __metadata__, too.
const ckptd_backend* NamedTensorsPlugin();

}  // namespace ckptd

#endif  // CKPTD_PLUGINS_SAFETENSORS_SAFETENSORS_PLUGIN_H_
