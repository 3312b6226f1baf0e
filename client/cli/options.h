#ifndef CKPTD_CLIENT_CLI_OPTIONS_H_
#define CKPTD_CLIENT_CLI_OPTIONS_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "ckptd/v1/checkpoint.pb.h"

namespace ckptd::cli {

// The whole command line, with its defaults.
struct Options {
  enum class Command {
    kStatus,
    kList,
    kGet,
    kWatch,
    kCancel,
    kExport,
    kFlush,
    kVerify,
    kInspect,
    kConvert
  };
  Command command = Command::kStatus;

  // --address, else as DefaultAddress() says.
  std::string address;

  // --output json: what the daemon answered, with the names of the .proto file; for verify a list
  // of files, for inspect what is in one.
  bool json = false;

  // --timeout. Without: 10 s where an answer comes at once, no end for watch, flush, convert and
  // --backend.
  std::optional<absl::Duration> timeout;

  // get, watch, cancel: jobs/{job}/saves/{save}. Empty for a watch over all saves.
  std::string save;

  // list and flush: jobs/{job}, or jobs/- for all.
  std::string parent = "jobs/-";

  // list and flush: only this path; all if empty.
  std::string path;

  // convert: what to read, to be saved to `path`.
  std::string source;

  // verify and inspect: the files; one for inspect.
  std::vector<std::string> files;

  // verify and inspect: the backend whose checkpoints they are; empty for files that are read here.
  // convert: that saves it.
  std::string backend;

  // list: only these states; all if empty.
  std::vector<v1::Save::State> states;

  // list: size and start of the one page shown, or every page.
  int page_size = 50;
  std::string page_token;
  bool all = false;
};

// Reads the command line. Where that is all there is to do (--help, --version) or it is wrong,
// prints what there is to say and returns nothing, with the exit code in `exit_code`.
std::optional<Options> ParseOptions(int argc, char** argv, int* exit_code);

// "jobs/x/saves/y" for itself and for "x/y"; none for anything else.
std::optional<std::string> FullSaveName(const std::string& text);

}  // namespace ckptd::cli

#endif  // CKPTD_CLIENT_CLI_OPTIONS_H_
