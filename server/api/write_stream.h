#ifndef CKPTD_SERVER_API_WRITE_STREAM_H_
#define CKPTD_SERVER_API_WRITE_STREAM_H_

#include "grpcpp/impl/codegen/server_callback.h"
#include "grpcpp/support/byte_buffer.h"
#include "server/queue/save_queue.h"

namespace ckptd {

// The stream of WriteSave: copies what arrives from gRPC's receive buffers straight into the image.
// `response` gets a serialized v1::WriteSaveResponse. Deletes itself when gRPC is done with it.
grpc::ServerReadReactor<grpc::ByteBuffer>* NewWriteStream(SaveQueue* queue,
                                                          grpc::ByteBuffer* response);

}  // namespace ckptd

#endif  // CKPTD_SERVER_API_WRITE_STREAM_H_
