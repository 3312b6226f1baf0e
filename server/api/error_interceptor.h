#ifndef CKPTD_SERVER_API_ERROR_INTERCEPTOR_H_
#define CKPTD_SERVER_API_ERROR_INTERCEPTOR_H_

#include <memory>
#include <vector>

#include "grpcpp/support/server_interceptor.h"

namespace ckptd {

// Gives errors that gRPC makes itself, such as for bytes that are no message of the method's type,
// the ErrorInfo that all others have: reason INVALID_REQUEST, and a sentence.
std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>>
ErrorInterceptors();

}  // namespace ckptd

#endif  // CKPTD_SERVER_API_ERROR_INTERCEPTOR_H_
