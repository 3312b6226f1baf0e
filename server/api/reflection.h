#ifndef CKPTD_SERVER_API_REFLECTION_H_
#define CKPTD_SERVER_API_REFLECTION_H_

#include <google/protobuf/descriptor_database.h>

#include <vector>

#include "google/protobuf/descriptor.pb.h"
#include "grpc/reflection/v1alpha/reflection.grpc.pb.h"

namespace ckptd {

// Server reflection with comments: gRPC's own describes messages without a word of what they mean,
// and does not know the health service that it serves. Describes what was built in from proto/.
class ReflectionService final : public grpc::reflection::v1alpha::ServerReflection::Service {
 public:
  ReflectionService();

  grpc::Status ServerReflectionInfo(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<grpc::reflection::v1alpha::ServerReflectionResponse,
                               grpc::reflection::v1alpha::ServerReflectionRequest>* stream)
      override;

 private:
  void Answer(const grpc::reflection::v1alpha::ServerReflectionRequest& request,
              grpc::reflection::v1alpha::ServerReflectionResponse* response);

  google::protobuf::FileDescriptorSet files_;
  // Immutable after the constructor; its methods are not const.
  google::protobuf::SimpleDescriptorDatabase database_;
};

}  // namespace ckptd

#endif  // CKPTD_SERVER_API_REFLECTION_H_
