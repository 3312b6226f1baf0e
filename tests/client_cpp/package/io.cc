#include "client/cpp/torch/sidecar_checkpoint_io.h"

int main() {
  const auto io = ckptd::SidecarCheckpointIO::Create();
  return absl::IsUnavailable(io.status()) ? 0 : 1;
}
