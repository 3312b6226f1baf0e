#include "server/api/error_interceptor.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/status/error_info.h"

namespace ckptd {
namespace {

using grpc::experimental::InterceptionHookPoints;

class ErrorInterceptor : public grpc::experimental::Interceptor {
 public:
  explicit ErrorInterceptor(std::string method) : method_(std::move(method)) {}

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_STATUS)) {
      const grpc::Status status = methods->GetSendStatus();
      if (!status.ok() && status.error_details().empty() &&
          status.error_code() == grpc::StatusCode::INTERNAL) {
        methods->ModifySendStatus(ToGrpc(
            MakeError(absl::StatusCode::kInvalidArgument, "INVALID_REQUEST",
                      absl::StrCat(method_,
                                   ": the request is no message of this method; make it from the "
                                   "proto/ of this daemon's version"))));
      }
    }
    methods->Proceed();
  }

 private:
  const std::string method_;
};

class Factory : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo* info) override {
    return new ErrorInterceptor(info->method());
  }
};

}  // namespace

std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>>
ErrorInterceptors() {
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> factories;
  factories.push_back(std::make_unique<Factory>());
  return factories;
}

}  // namespace ckptd
