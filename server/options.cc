#include "server/options.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <istream>
#include <memory>
#include <set>
#include <system_error>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "proto/status/address.h"

namespace ckptd {
namespace {

// Empty where the environment names an address that is no unix socket.
std::string DefaultSocket() {
  const std::string address = DefaultAddress();
  absl::string_view path = address;
  return absl::ConsumePrefix(&path, "unix:") ? std::string(path) : "";
}

std::string DefaultPluginDir() {
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  return (program.parent_path().parent_path() / "lib/ckptd/plugins").string();
}

CLI::Validator DurationCheck() {
  return CLI::Validator(
      [](std::string& text) {
        absl::Duration duration;
        if (absl::ParseDuration(text, &duration) && duration >= absl::ZeroDuration()) {
          return std::string();
        }
        return absl::StrCat("'", text, "' is no duration; write 90s, 5m or 1h");
      },
      "DURATION");
}

CLI::Validator SizeCheck() {
  return CLI::Validator(
      [convert = CLI::AsSizeValue(/*kb_is_1000=*/true)](std::string& text) {
        // By itself CLI11 takes -1 for 2^64 - 1 and 010 for 8.
        const std::string digits = text.substr(0, text.find_first_not_of("0123456789"));
        uint64_t number = 0;
        if (!absl::SimpleAtoi(digits, &number)) {
          return absl::StrCat("'", text, "' is no size; write 8GiB, 500MB or a number of bytes");
        }
        text = absl::StrCat(number, text.substr(digits.size()));
        return convert(text);
      },
      "SIZE");
}

CLI::Validator AbsoluteCheck() {
  return CLI::Validator(
      [](std::string& text) {
        if (!text.empty() && text[0] == '/') return std::string();
        return absl::StrCat("'", text, "' is not absolute; give the whole path, beginning with /");
      },
      "DIR");
}

CLI::Validator FolderCheck() {
  return CLI::Validator(
      [](std::string& text) {
        std::error_code error;
        if (std::filesystem::is_directory(text, error)) return std::string();
        return absl::StrCat("'", text, "' is no folder", error ? ": " : "",
                            error ? error.message() : "", "; make it, or leave the option out");
      },
      "");
}

// CLI11 asks the environment only for what the file has left open; here a variable goes first.
class FileBelowEnvironment : public CLI::ConfigTOML {
 public:
  FileBelowEnvironment(const CLI::App* app, Options* options) : app_(app), options_(options) {}

  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override {
    std::vector<CLI::ConfigItem> found = CLI::ConfigTOML::from_config(input);
    auto in_environment = [this](const CLI::ConfigItem& item) {
      const CLI::Option* option = app_->get_option_no_throw("--" + item.name);
      if (option == nullptr || option->get_envname().empty()) return false;
      // NOLINTNEXTLINE(concurrency-mt-unsafe): before any thread could change the environment
      const char* value = std::getenv(option->get_envname().c_str());
      return value != nullptr && *value != 0;
    };
    found.erase(std::remove_if(found.begin(), found.end(), in_environment), found.end());
    const auto for_backend = [this](const CLI::ConfigItem& item) {
      if (item.parents.size() != 2 || item.parents[0] != "backend") {
        return item.parents.size() == 1 && item.parents[0] == "backend" &&
               (item.name == "++" || item.name == "--");
      }
      if (item.name != "++" && item.name != "--") {
        options_->backend_config[item.parents[1]].emplace_back(item.name,
                                                               absl::StrJoin(item.inputs, ","));
      }
      return true;
    };
    found.erase(std::remove_if(found.begin(), found.end(), for_backend), found.end());
    return found;
  }

 private:
  const CLI::App* const app_;
  Options* const options_;
};

// Durations as they are written.
struct Durations {
  std::string drain_timeout;
  std::string retry_timeout;
  std::string idle_exit;
  std::string idle_trim;
};

void AddDuration(CLI::App* app, const char* flag, const char* variable, std::string* value,
                 const char* description) {
  app->add_option(flag, *value, description)
      ->envname(variable)
      ->check(DurationCheck())
      ->capture_default_str();
}

void AddOptions(CLI::App* app, Options* options, Durations* durations) {
  app->set_config("--config", "", "File with these options in TOML, one a line");
  app->config_formatter(std::make_shared<FileBelowEnvironment>(app, options));
  app->allow_config_extras(CLI::config_extras_mode::error);
  app->add_option("--socket", options->socket, "Unix socket to serve (default from CKPTD_ADDRESS)")
      ->envname("CKPTD_SOCKET");
  app->add_option("--pool-dir", options->pool_dir, "Folder on a tmpfs for staging images")
      ->envname("CKPTD_POOL_DIR")
      ->capture_default_str();
  app->add_option("--staging-budget", options->staging_budget_bytes,
                  "Most memory for staging images, as 8GiB or 500MB (default: a quarter of the "
                  "smallest of RAM, the cgroup's limit and the tmpfs)")
      ->envname("CKPTD_STAGING_BUDGET")
      ->transform(SizeCheck());
  app->add_option("--allow-root", options->allow_roots,
                  "Save, load and remove only beneath this folder; repeatable (default: anywhere)")
      ->envname("CKPTD_ALLOW_ROOT")
      ->delimiter(':')
      ->allow_extra_args(false)
      ->check(AbsoluteCheck());
  app->add_option("--plugin-dir", options->plugin_dir,
                  "Folder with plugins (default: ../lib/ckptd/plugins beside the program)")
      ->envname("CKPTD_PLUGIN_DIR")
      ->check(AbsoluteCheck())
      ->check(FolderCheck());
  app->add_option("--state-dir", options->state_dir,
                  "Folder of the journal (default $XDG_STATE_HOME/ckptd or ~/.local/state/ckptd)")
      ->envname("CKPTD_STATE_DIR");
  AddDuration(app, "--drain-timeout", "CKPTD_DRAIN_TIMEOUT", &durations->drain_timeout,
              "How long SIGTERM waits for pending saves; the rest stays for the next start");
  AddDuration(app, "--retry-timeout", "CKPTD_RETRY_TIMEOUT", &durations->retry_timeout,
              "How long a save is tried again while its storage fails or is full");
  app->add_option(
         "--persist-nice", options->persist_nice,
         "How far a save that is written alone gives way to what else wants the processor, "
         "as nice(1) has it; 0: not at all")
      ->envname("CKPTD_PERSIST_NICE")
      ->check(CLI::Range(0, 19))
      ->capture_default_str();
  AddDuration(app, "--idle-exit", "CKPTD_IDLE_EXIT", &durations->idle_exit,
              "End after that long without client and work; 0: never");
  AddDuration(app, "--idle-trim", "CKPTD_IDLE_TRIM", &durations->idle_trim,
              "Give free staging memory back after that long without client and work; 0: never");
  app->add_option("--log-level", options->log_level)
      ->envname("CKPTD_LOG_LEVEL")
      ->check(
          CLI::IsMember(std::set<std::string>{"trace", "debug", "info", "warn", "error", "off"}))
      ->capture_default_str();
  app->set_version_flag("--version", std::string("ckptd ") + CKPTD_VERSION);
}

}  // namespace

CommandLine ParseCommandLine(int argc, char** argv) {
  CommandLine result;
  Options& options = result.options;
  options.socket = DefaultSocket();
  options.plugin_dir = DefaultPluginDir();
  options.pool_dir = absl::StrCat("/dev/shm/ckptd-", getuid());
  Durations durations = {
      absl::FormatDuration(options.drain_timeout), absl::FormatDuration(options.retry_timeout),
      absl::FormatDuration(options.idle_exit), absl::FormatDuration(options.idle_trim)};

  CLI::App app(
      "ckptd: takes checkpoints off trainers' hands and makes them durable.\n"
      "Serves in the foreground, logs to stderr, drains on SIGTERM.");
  app.option_defaults()->always_capture_default(false);
  AddOptions(&app, &options, &durations);
  try {
    app.parse(argc, argv);
    if (options.socket.empty()) {
      throw CLI::ValidationError("--socket",
                                 absl::StrCat("CKPTD_ADDRESS is ", DefaultAddress(),
                                              ", which is no unix socket; give --socket PATH"));
    }
  } catch (const CLI::ParseError& error) {
    result.exit = true;
    result.exit_code = app.exit(error) == 0 ? 0 : 2;
    return result;
  }
  absl::ParseDuration(durations.drain_timeout, &options.drain_timeout);
  absl::ParseDuration(durations.retry_timeout, &options.retry_timeout);
  absl::ParseDuration(durations.idle_exit, &options.idle_exit);
  absl::ParseDuration(durations.idle_trim, &options.idle_trim);
  return result;
}

}  // namespace ckptd
