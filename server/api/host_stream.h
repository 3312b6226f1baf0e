#ifndef CKPTD_SERVER_API_HOST_STREAM_H_
#define CKPTD_SERVER_API_HOST_STREAM_H_

#include "ckptd/v1/checkpoint.grpc.pb.h"
#include "server/api/streams.h"
#include "server/backend/hosts.h"

namespace ckptd {

// The stream of AttachHost: carries tasks to a host process and reports back from it. Deletes
// itself when gRPC is done with it.
grpc::ServerBidiReactor<v1::HostReport, v1::HostTask>* NewHostStream(OpenStreams* streams,
                                                                     BackendHosts* hosts);

}  // namespace ckptd

#endif  // CKPTD_SERVER_API_HOST_STREAM_H_
