#include "server/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "tests/server/testing/temp_dir.h"

namespace ckptd {
namespace {

using testing::HasSubstr;

// Starts each test without any of the variables, and puts them back.
class OptionsTest : public testing::Test {
 protected:
  OptionsTest() {
    for (const char* name :
         {"CKPTD_ADDRESS", "XDG_RUNTIME_DIR", "CKPTD_SOCKET", "CKPTD_POOL_DIR",
          "CKPTD_STAGING_BUDGET", "CKPTD_DRAIN_TIMEOUT", "CKPTD_PERSIST_NICE", "CKPTD_IDLE_EXIT",
          "CKPTD_LOG_LEVEL", "CKPTD_ALLOW_ROOT", "CKPTD_PLUGIN_DIR"}) {
      // NOLINTNEXTLINE(concurrency-mt-unsafe): this test has one thread
      const char* value = std::getenv(name);
      old_[name] = value == nullptr ? std::nullopt : std::optional<std::string>(value);
      unsetenv(name);  // NOLINT(concurrency-mt-unsafe)
    }
  }
  ~OptionsTest() override {
    for (const auto& [name, value] : old_) {
      unsetenv(name.c_str());  // NOLINT(concurrency-mt-unsafe)
      if (value.has_value()) SetEnv(name, *value);
    }
  }

  static void SetEnv(const std::string& name, const std::string& value) {
    setenv(name.c_str(), value.c_str(), 1);  // NOLINT(concurrency-mt-unsafe)
  }

  // What was printed goes to output_ and errors_.
  CommandLine Parse(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "ckptd");
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    const CommandLine result = ParseCommandLine(static_cast<int>(argv.size()), argv.data());
    output_ = testing::internal::GetCapturedStdout();
    errors_ = testing::internal::GetCapturedStderr();
    return result;
  }
  Options ParseOk(const std::vector<std::string>& arguments) {
    const CommandLine result = Parse(arguments);
    EXPECT_FALSE(result.exit) << errors_;
    return result.options;
  }
  // Wrong usage: exit code 2, and a sentence that names `culprit`.
  void ExpectUsage(const std::vector<std::string>& arguments, const std::string& culprit) {
    const CommandLine result = Parse(arguments);
    EXPECT_TRUE(result.exit) << culprit;
    EXPECT_EQ(result.exit_code, 2) << culprit;
    EXPECT_THAT(errors_, HasSubstr(culprit));
  }
  std::string WriteConfig(const std::string& text) {
    WriteFile(dir_ / "ckptd.toml", text);
    return dir_ / "ckptd.toml";
  }

  TempDir dir_;
  std::map<std::string, std::optional<std::string>> old_;
  std::string output_;
  std::string errors_;
};

TEST_F(OptionsTest, Defaults) {
  const std::string uid = std::to_string(getuid());
  const Options options = ParseOk({});
  EXPECT_EQ(options.socket, "/tmp/ckptd-" + uid + "/ckptd.sock");
  EXPECT_EQ(options.pool_dir, "/dev/shm/ckptd-" + uid);
  EXPECT_EQ(options.staging_budget_bytes, 0u);
  EXPECT_EQ(options.drain_timeout, absl::Minutes(5));
  EXPECT_EQ(options.idle_exit, absl::ZeroDuration());
  EXPECT_EQ(options.idle_trim, absl::Minutes(10));
  EXPECT_EQ(options.persist_nice, 17);
  EXPECT_EQ(options.log_level, "info");
}

TEST_F(OptionsTest, TheSocketFollowsTheAddress) {
  SetEnv("XDG_RUNTIME_DIR", "/run/user/7");
  EXPECT_EQ(ParseOk({}).socket, "/run/user/7/ckptd/ckptd.sock");
  SetEnv("CKPTD_ADDRESS", "unix:/a/b.sock");
  EXPECT_EQ(ParseOk({}).socket, "/a/b.sock");
  EXPECT_EQ(ParseOk({"--socket", "/c.sock"}).socket, "/c.sock");
  SetEnv("CKPTD_ADDRESS", "localhost:1234");
  ExpectUsage({}, "localhost:1234");
  EXPECT_EQ(ParseOk({"--socket", "/c.sock"}).socket, "/c.sock");
}

TEST_F(OptionsTest, Flags) {
  const Options options =
      ParseOk({"--socket=/s", "--pool-dir", "/p", "--staging-budget=8GiB", "--drain-timeout", "90s",
               "--idle-exit=1h30m", "--idle-trim=5s", "--persist-nice=0", "--log-level=warn"});
  EXPECT_EQ(options.socket, "/s");
  EXPECT_EQ(options.pool_dir, "/p");
  EXPECT_EQ(options.staging_budget_bytes, uint64_t{8} << 30);
  EXPECT_EQ(options.drain_timeout, absl::Seconds(90));
  EXPECT_EQ(options.idle_exit, absl::Minutes(90));
  EXPECT_EQ(options.idle_trim, absl::Seconds(5));
  EXPECT_EQ(options.persist_nice, 0);
  EXPECT_EQ(options.log_level, "warn");
}

TEST_F(OptionsTest, Sizes) {
  EXPECT_EQ(ParseOk({"--staging-budget=500MB"}).staging_budget_bytes, 500000000u);
  EXPECT_EQ(ParseOk({"--staging-budget=2MiB"}).staging_budget_bytes, 2u << 20);
  EXPECT_EQ(ParseOk({"--staging-budget=123456"}).staging_budget_bytes, 123456u);
  EXPECT_EQ(ParseOk({"--staging-budget=0"}).staging_budget_bytes, 0u);
  EXPECT_EQ(ParseOk({"--staging-budget=010"}).staging_budget_bytes, 10u);
}

TEST_F(OptionsTest, Environment) {
  SetEnv("CKPTD_SOCKET", "/s");
  SetEnv("CKPTD_POOL_DIR", "/p");
  SetEnv("CKPTD_STAGING_BUDGET", "1GiB");
  SetEnv("CKPTD_DRAIN_TIMEOUT", "7s");
  SetEnv("CKPTD_IDLE_EXIT", "8s");
  SetEnv("CKPTD_LOG_LEVEL", "error");
  const Options options = ParseOk({});
  EXPECT_EQ(options.socket, "/s");
  EXPECT_EQ(options.pool_dir, "/p");
  EXPECT_EQ(options.staging_budget_bytes, uint64_t{1} << 30);
  EXPECT_EQ(options.drain_timeout, absl::Seconds(7));
  EXPECT_EQ(options.idle_exit, absl::Seconds(8));
  EXPECT_EQ(options.log_level, "error");
}

TEST_F(OptionsTest, ConfigFile) {
  const std::string config = WriteConfig(
      "socket = \"/s\"\n"
      "pool-dir = \"/p\"\n"
      "staging-budget = \"3GiB\"\n"
      "drain-timeout = \"7s\"\n"
      "# a comment\n"
      "idle-exit = \"8s\"\n"
      "log-level = \"debug\"\n");
  const Options options = ParseOk({"--config", config});
  EXPECT_EQ(options.socket, "/s");
  EXPECT_EQ(options.pool_dir, "/p");
  EXPECT_EQ(options.staging_budget_bytes, uint64_t{3} << 30);
  EXPECT_EQ(options.drain_timeout, absl::Seconds(7));
  EXPECT_EQ(options.idle_exit, absl::Seconds(8));
  EXPECT_EQ(options.log_level, "debug");
}

TEST_F(OptionsTest, AFlagGoesBeforeTheEnvironmentAndThatBeforeTheFile) {
  const std::string config = WriteConfig("pool-dir = \"/file\"\nlog-level = \"debug\"\n");
  SetEnv("CKPTD_POOL_DIR", "/environment");
  EXPECT_EQ(ParseOk({"--config", config}).pool_dir, "/environment");
  EXPECT_EQ(ParseOk({"--config", config}).log_level, "debug");
  EXPECT_EQ(ParseOk({"--config", config, "--pool-dir=/flag"}).pool_dir, "/flag");
}

TEST_F(OptionsTest, WrongValuesAreWrongUsage) {
  ExpectUsage({"--no-such-option"}, "--no-such-option");
  ExpectUsage({"stray"}, "stray");
  ExpectUsage({"--socket"}, "--socket");
  for (const char* size :
       {"x", "-1", "8XiB", "", "1e400", "+1", " 1", "99999999999999999999", "20000000TB"}) {
    ExpectUsage({std::string("--staging-budget=") + size}, "--staging-budget");
  }
  for (const char* nice : {"-1", "20", "x", ""}) {
    ExpectUsage({std::string("--persist-nice=") + nice}, "--persist-nice");
  }
  for (const char* duration : {"x", "-1s", "5", ""}) {
    ExpectUsage({std::string("--drain-timeout=") + duration}, "--drain-timeout");
    ExpectUsage({std::string("--idle-exit=") + duration}, "--idle-exit");
  }
  ExpectUsage({"--log-level=loud"}, "--log-level");
  ExpectUsage({"--config", dir_ / "none.toml"}, "none.toml");
}

TEST_F(OptionsTest, WrongValuesInTheEnvironmentAreWrongUsage) {
  SetEnv("CKPTD_STAGING_BUDGET", "much");
  ExpectUsage({}, "much");
  SetEnv("CKPTD_STAGING_BUDGET", "1GiB");
  SetEnv("CKPTD_DRAIN_TIMEOUT", "soon");
  ExpectUsage({}, "soon");
}

TEST_F(OptionsTest, WrongLinesInTheFileAreWrongUsage) {
  ExpectUsage({"--config", WriteConfig("log-level = \"loud\"\n")}, "loud");
  ExpectUsage({"--config", WriteConfig("staging-budget = \"much\"\n")}, "much");
  ExpectUsage({"--config", WriteConfig("no-such-key = 1\n")}, "no-such-key");
}

TEST_F(OptionsTest, HelpAndVersionAreNoErrors) {
  CommandLine result = Parse({"--help"});
  EXPECT_TRUE(result.exit);
  EXPECT_EQ(result.exit_code, 0);
  for (const char* flag :
       {"--config", "--socket", "--pool-dir", "--staging-budget", "--drain-timeout",
        "--persist-nice", "--idle-exit", "--idle-trim", "--log-level"}) {
    EXPECT_THAT(output_, HasSubstr(flag));
  }
  result = Parse({"--version"});
  EXPECT_TRUE(result.exit);
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(output_, std::string("ckptd ") + CKPTD_VERSION + "\n");
}

// ---- --allow-root ----------------------------------------------------------------------------

TEST_F(OptionsTest, AllowRootMayBeGivenMoreThanOnce) {
  using testing::ElementsAre;
  EXPECT_THAT(ParseOk({}).allow_roots, testing::IsEmpty());
  EXPECT_THAT(ParseOk({"--allow-root", "/a"}).allow_roots, ElementsAre("/a"));
  EXPECT_THAT(ParseOk({"--allow-root", "/a", "--allow-root=/b/c"}).allow_roots,
              ElementsAre("/a", "/b/c"));
  EXPECT_THAT(ParseOk({"--allow-root", "/a:/b"}).allow_roots, ElementsAre("/a", "/b"));
}

TEST_F(OptionsTest, AllowRootFromTheEnvironmentAndTheFile) {
  using testing::ElementsAre;
  const TempDir dir;
  WriteFile(dir / "one", "allow-root = \"/file\"\n");
  WriteFile(dir / "two", "allow-root = [\"/file\", \"/other file\"]\n");
  EXPECT_THAT(ParseOk({"--config", dir / "one"}).allow_roots, ElementsAre("/file"));
  EXPECT_THAT(ParseOk({"--config", dir / "two"}).allow_roots, ElementsAre("/file", "/other file"));
  SetEnv("CKPTD_ALLOW_ROOT", "/a:/b");
  EXPECT_THAT(ParseOk({"--config", dir / "two"}).allow_roots, ElementsAre("/a", "/b"));
  EXPECT_THAT(ParseOk({"--allow-root", "/flag"}).allow_roots, ElementsAre("/flag"));
}

TEST_F(OptionsTest, PluginsAreToldWhatTheFileHas) {
  using testing::ElementsAre;
  using testing::Pair;
  const TempDir dir;
  WriteFile(
      dir / "file",
      "plugin-dir = \"/usr\"\n[backend.npy]\nlevel = 9\nkey = \"a b\"\n[backend.s3]\nx = \"y\"\n");
  const Options options = ParseOk({"--config", dir / "file"});
  EXPECT_EQ(options.plugin_dir, "/usr");
  EXPECT_THAT(options.backend_config,
              ElementsAre(Pair("npy", ElementsAre(Pair("level", "9"), Pair("key", "a b"))),
                          Pair("s3", ElementsAre(Pair("x", "y")))));
  SetEnv("CKPTD_PLUGIN_DIR", "/");
  EXPECT_EQ(ParseOk({"--config", dir / "file"}).plugin_dir, "/");
}

TEST_F(OptionsTest, RefusesAPluginDirThatIsNoFolder) {
  const TempDir dir;
  WriteFile(dir / "file", "");
  WriteFile(dir / "config", std::string("plugin-dir = \"") + (dir / "none") + "\"\n");
  for (const std::string& value : {dir / "none", dir / "file"}) {
    EXPECT_EQ(Parse({"--plugin-dir", value}).exit_code, 2);
    EXPECT_THAT(errors_, HasSubstr("'" + value + "' is no folder")) << value;
  }
  EXPECT_EQ(Parse({"--config", dir / "config"}).exit_code, 2);
  SetEnv("CKPTD_PLUGIN_DIR", dir / "none");
  EXPECT_EQ(Parse({}).exit_code, 2);
  // A flag goes before it.
  EXPECT_EQ(ParseOk({"--plugin-dir", "/"}).plugin_dir, "/");
}

// What is meant to limit must not turn out to limit nothing.
TEST_F(OptionsTest, RefusesAnAllowRootThatIsNotAbsolute) {
  for (const char* value : {"relative", "", "./x", "/a:b", ":"}) {
    const CommandLine result = Parse({"--allow-root", value});
    EXPECT_TRUE(result.exit) << value;
    EXPECT_EQ(result.exit_code, 2) << value;
    EXPECT_THAT(errors_, HasSubstr("--allow-root")) << value;
  }
  EXPECT_EQ(Parse({"--allow-root", "/a", "/b"}).exit_code, 2) << "a stray argument";
  EXPECT_EQ(Parse({"--allow-root"}).exit_code, 2);
  const TempDir dir;
  for (const char* value : {"[]", "\"\"", "[\"/a\", \"\"]"}) {
    WriteFile(dir / "file", std::string("allow-root = ") + value + "\n");
    EXPECT_EQ(Parse({"--config", dir / "file"}).exit_code, 2) << value;
  }
}

}  // namespace
}  // namespace ckptd
