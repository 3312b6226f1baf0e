#include "client/cli/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <memory>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "client/cli/exit_code.h"
#include "proto/status/address.h"

namespace ckptd::cli {
namespace {

using Command = Options::Command;

constexpr char kFooter[] =
    "SAVE is a name as `ckptctl list` shows it: JOB/SAVE, or jobs/JOB/saves/SAVE.\n"
    "Exit codes: 0 done; 1 the operation failed, or a file is not whole; 2 wrong usage; "
    "3 no daemon.\n\n"
    "Examples:\n"
    "  ckptctl list --state queued,persisting\n"
    "  ckptctl watch trainer/812-3-9f2c1a\n"
    "  ckptctl list --all --output json | jq '.saves[].path'";

// What CLI11 puts in front of an error where a value is refused.
std::string Refuse(const std::string& why) { return why; }

std::optional<absl::Duration> ParseTimeout(const std::string& text) {
  absl::Duration duration;
  double seconds = 0;
  if (absl::SimpleAtod(text, &seconds)) {
    duration = absl::Seconds(seconds);
  } else if (!absl::ParseDuration(text, &duration)) {
    return std::nullopt;
  }
  if (duration <= absl::ZeroDuration()) return std::nullopt;
  return duration;
}

void AddGlobal(CLI::App& app, Options& options) {
  app.add_option("-a,--address", options.address,
                 "Where the daemon is: unix:PATH or HOST:PORT. Default: $CKPTD_ADDRESS, else this "
                 "user's own socket")
      ->type_name("ADDRESS");
  app.add_option_function<std::string>(
         "-o,--output", [&options](const std::string& form) { options.json = form == "json"; },
         "table for people (default) or json for programs")
      ->check(CLI::IsMember({"table", "json"}).description(""))
      ->type_name("FORM");
  app.add_option_function<std::string>(
         "-t,--timeout",
         [&options](const std::string& text) { options.timeout = ParseTimeout(text); },
         "How long to wait for the answer: seconds, or 500ms, 2m. Default: 10s; none for watch, "
         "flush, convert and --backend")
      ->check([](const std::string& text) {
        return ParseTimeout(text) ? "" : Refuse("'" + text + "' is no time: use 30, 500ms, 2m");
      })
      ->type_name("TIME");
  app.set_version_flag("-V,--version", "ckptctl " CKPTD_VERSION);
}

void AddSave(CLI::App& command, Options& options, bool required) {
  command
      .add_option_function<std::string>(
          "SAVE", [&options](const std::string& text) { options.save = *FullSaveName(text); },
          required ? "The save" : "Only this save; ends when it has ended")
      ->required(required)
      ->check([](const std::string& text) {
        return FullSaveName(text)
                   ? ""
                   : Refuse("'" + text + "' is no save: use JOB/SAVE or jobs/JOB/saves/SAVE");
      })
      ->type_name("");
}

void AddScope(CLI::App& command, Options& options, const std::string& what) {
  command
      .add_option_function<std::string>(
          "-j,--job",
          [&options](const std::string& job) {
            options.parent = absl::StartsWith(job, "jobs/") ? job : absl::StrCat("jobs/", job);
          },
          what + " of this job")
      ->type_name("JOB");
  command.add_option("-p,--path", options.path, what + " to this path, as the trainer gave it")
      ->type_name("PATH");
}

void AddList(CLI::App& command, Options& options) {
  AddScope(command, options, "Only saves");
  std::vector<std::string> names;
  for (int i = 1; v1::Save::State_IsValid(i); ++i) {
    names.push_back(v1::Save::State_Name(static_cast<v1::Save::State>(i)));
    absl::AsciiStrToLower(&names.back());
  }
  command
      .add_option_function<std::vector<std::string>>(
          "-s,--state",
          [&options](const std::vector<std::string>& chosen) {
            for (std::string name : chosen) {
              absl::AsciiStrToUpper(&name);
              v1::Save::State state = v1::Save::STATE_UNSPECIFIED;
              v1::Save::State_Parse(name, &state);
              options.states.push_back(state);
            }
          },
          "Only saves in these states: " + absl::StrJoin(names, ", "))
      ->delimiter(',')
      ->check(CLI::IsMember(names, CLI::ignore_case).description(""))
      ->type_name("STATE,...");
  auto* all = command.add_flag("--all", options.all, "Every save, not only the newest page");
  command.add_option("--page-size", options.page_size, "Saves in a page, at most 1000")
      ->check(CLI::Range(1, 1000).description(""))
      ->capture_default_str()
      ->type_name("N");
  command
      .add_option("--page-token", options.page_token,
                  "The page that a call with the same filters named as next")
      ->excludes(all)
      ->type_name("TOKEN");
}

CLI::Option& AddFiles(CLI::App& command, Options& options, const std::string& what) {
  command
      .add_option("-b,--backend", options.backend,
                  "Have the daemon ask this backend, as for checkpoints that only a plugin reads; "
                  "what is pending on the path comes first")
      ->type_name("NAME");
  return *command.add_option("PATH", options.files, what)->required()->type_name("");
}

// An absolute path of this machine.
void AddPath(CLI::App& command, const char* name, std::string& to, const char* what) {
  command
      .add_option_function<std::string>(
          name, [&to](const std::string& path) { to = std::filesystem::absolute(path).string(); },
          what)
      ->required()
      ->type_name("");
}

void AddConvert(CLI::App& command, Options& options) {
  AddPath(command, "SRC", options.source, "The file; what it is, its first bytes tell");
  AddPath(command, "DST", options.path,
          "Where to, as the daemon sees it; what is there is replaced when the new one is durable");
  command
      .add_option("-b,--backend", options.backend,
                  "The format: safetensors, torch, xla, or a plugin that takes named tensors")
      ->required()
      ->type_name("NAME");
  command.footer(
      "A state is dicts, lists and tuples of tensors, numbers, text and None. Tied tensors stay "
      "tied, and views become whole tensors. What only Python can make is refused by its name.");
}

// CLI11 says of a word that is no command only that there is none.
std::string FailureMessage(const CLI::App* app, const CLI::Error& error) {
  std::string message = CLI::FailureMessage::simple(app, error);
  const std::vector<std::string> rest = app->remaining();
  if (!app->get_subcommands().empty() || rest.empty()) return message;
  return absl::StrCat("'", rest[0], "' is no command of ckptctl\n", message);
}

}  // namespace

std::optional<std::string> FullSaveName(const std::string& text) {
  const std::vector<std::string> parts = absl::StrSplit(text, '/');
  if (std::any_of(parts.begin(), parts.end(), [](const auto& p) { return p.empty(); })) {
    return std::nullopt;
  }
  if (parts.size() == 2) return absl::StrCat("jobs/", parts[0], "/saves/", parts[1]);
  if (parts.size() == 4 && parts[0] == "jobs" && parts[2] == "saves") return text;
  return std::nullopt;
}

std::optional<Options> ParseOptions(int argc, char** argv, int* exit_code) {
  Options options;
  CLI::App app("Looks after the saves of ckptd, the checkpoint sidecar.", "ckptctl");
  app.require_subcommand(1);
  app.fallthrough();
  app.failure_message(FailureMessage);
  app.footer(kFooter);
  app.get_formatter()->column_width(34);
  AddGlobal(app, options);

  auto add = [&](const char* name, const char* what, Command command) {
    CLI::App* sub = app.add_subcommand(name, what);
    sub->callback([&options, command] { options.command = command; });
    return sub;
  };
  add("status", "How the daemon is: version, staging memory, work in hand", Command::kStatus);
  AddList(*add("list", "Saves, newest first", Command::kList), options);
  AddSave(*add("get", "Everything about one save", Command::kGet), options, true);
  AddSave(*add("watch",
               "Follow saves as they go: a progress bar each on a terminal, else a line "
               "for each change",
               Command::kWatch),
          options, false);
  AddSave(*add("cancel", "Ask a save to stop; what was at its path stays", Command::kCancel),
          options, true);
  CLI::App* exporting =
      add("export", "Write the staging image of a save that waits or has failed to another path",
          Command::kExport);
  AddSave(*exporting, options, true);
  AddPath(*exporting, "PATH", options.path, "Where to, as the daemon sees it");
  AddScope(*add("flush", "Wait until the saves and removals accepted so far have ended",
                Command::kFlush),
           options, "Only those");
  AddFiles(*add("verify",
                "Check files of torch.save, ckptd or safetensors against their checksums; needs no "
                "daemon",
                Command::kVerify),
           options, "The files")
      .expected(1, -1);
  AddFiles(
      *add("inspect",
           "What is in a file of torch.save or safetensors, without unpickling; needs no daemon",
           Command::kInspect),
      options, "The file")
      .expected(1);
  AddConvert(
      *add("convert",
           "Save a torch or safetensors file in another format, and wait until it is durable",
           Command::kConvert),
      options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    *exit_code = app.exit(error) == 0 ? kExitOk : kExitUsage;
    return std::nullopt;
  }
  if (options.address.empty()) options.address = DefaultAddress();
  return options;
}

}  // namespace ckptd::cli
