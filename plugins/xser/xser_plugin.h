#ifndef CKPTD_PLUGINS_XSER_XSER_PLUGIN_H_
#define CKPTD_PLUGINS_XSER_XSER_PLUGIN_H_

#include "plugins/abi/plugin.h"

namespace ckptd {

// The backend "xla-xser": what torch_xla.utils.serialization.save writes. At the path a torch file
// whose object has a TensorReference in place of each tensor; in the folder PATH.tensors a torch
// file for each, tensor_TID.pt.
//
// Unlike torch_xla's it keeps the old checkpoint until the new one is whole: tids are none that the
// old one has, so that both can be there at once, and the file at the path says which counts.
//
// A save's tensors are, in this order:
//   object          uint8, the pickle of the object
//   data/0, ...     uint8, storages that the object itself refers to
//   tensor_TID.pt   the tensors, by the names of their files
// and the option "metadata.xser.kinds" has one letter for each of the last: "t" a tensor, "g" one
// that requires a gradient, "p" and "q" a Parameter that does and one that does not.
//
// Has no load: clients read the files themselves.
const ckptd_backend* XserPlugin();

}  // namespace ckptd

#endif  // CKPTD_PLUGINS_XSER_XSER_PLUGIN_H_
