#include "server/api/reflection.h"

#include <cstdint>

// The descriptor set that protoc made of proto/, with source information: see descriptors.S.
extern "C" {
extern const char ckptd_descriptors_begin[];
extern const char ckptd_descriptors_end[];
}

namespace ckptd {

using grpc::reflection::v1alpha::ServerReflectionRequest;
using grpc::reflection::v1alpha::ServerReflectionResponse;

ReflectionService::ReflectionService() {
  const auto size = reinterpret_cast<uintptr_t>(ckptd_descriptors_end) -
                    reinterpret_cast<uintptr_t>(ckptd_descriptors_begin);
  files_.ParseFromArray(ckptd_descriptors_begin, static_cast<int>(size));
  for (const google::protobuf::FileDescriptorProto& file : files_.file()) {
    database_.Add(file);
  }
}

grpc::Status ReflectionService::ServerReflectionInfo(
    grpc::ServerContext* context,
    grpc::ServerReaderWriter<ServerReflectionResponse, ServerReflectionRequest>* stream) {
  ServerReflectionRequest request;
  while (stream->Read(&request)) {
    ServerReflectionResponse response;
    response.set_valid_host(request.host());
    *response.mutable_original_request() = request;
    Answer(request, &response);
    stream->Write(response);
  }
  return grpc::Status::OK;
}

void ReflectionService::Answer(const ServerReflectionRequest& request,
                               ServerReflectionResponse* response) {
  google::protobuf::FileDescriptorProto file;
  bool found = false;
  switch (request.message_request_case()) {
    case ServerReflectionRequest::kListServices:
      for (const auto& known : files_.file()) {
        for (const auto& service : known.service()) {
          response->mutable_list_services_response()->add_service()->set_name(known.package() +
                                                                              "." + service.name());
        }
      }
      return;
    case ServerReflectionRequest::kFileByFilename:
      found = database_.FindFileByName(request.file_by_filename(), &file);
      break;
    case ServerReflectionRequest::kFileContainingSymbol:
      found = database_.FindFileContainingSymbol(request.file_containing_symbol(), &file);
      break;
    default:
      break;  // proto3 has no extensions
  }
  if (found) {
    response->mutable_file_descriptor_response()->add_file_descriptor_proto(
        file.SerializeAsString());
    return;
  }
  response->mutable_error_response()->set_error_code(grpc::StatusCode::NOT_FOUND);
  response->mutable_error_response()->set_error_message("not known to this server");
}

}  // namespace ckptd
