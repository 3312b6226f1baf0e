#ifndef CKPTD_SERVER_JOURNAL_SQLITE_H_
#define CKPTD_SERVER_JOURNAL_SQLITE_H_

#include <sqlite3.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ckptd {

// A prepared statement. Bind counts from 1, columns from 0. Must go before its database.
class SqlStatement {
 public:
  SqlStatement() = default;
  SqlStatement& Bind(int index, int64_t value);
  // Copies; an empty one is an empty blob, not NULL.
  SqlStatement& Bind(int index, const std::string& blob);
  SqlStatement& BindNull(int index);

  // Whether there is a row.
  absl::StatusOr<bool> Step();
  // Runs a statement that gives no rows, and makes it ready for the next Bind.
  absl::Status Run();

  int64_t Int(int column) const;
  std::string Blob(int column) const;
  bool IsNull(int column) const;

 private:
  friend class SqlDatabase;
  struct Finalize {
    void operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }
  };
  std::unique_ptr<sqlite3_stmt, Finalize> statement_;
};

// One SQLite file, open for this process alone. Errors have reason JOURNAL_ERROR, those of a file
// that is no sound database JOURNAL_CORRUPT. Not thread-safe.
class SqlDatabase {
 public:
  // Makes the file where it does not exist.
  static absl::StatusOr<std::unique_ptr<SqlDatabase>> Open(const std::string& file);

  absl::Status Execute(const std::string& sql);
  absl::StatusOr<SqlStatement> Prepare(const std::string& sql);
  // The one number that `sql` gives.
  absl::StatusOr<int64_t> Number(const std::string& sql);

  // The error of the call on this database that failed last.
  absl::Status Error(absl::string_view action) const;
  sqlite3* handle() const { return handle_.get(); }

 private:
  struct Close {
    void operator()(sqlite3* handle) const { sqlite3_close_v2(handle); }
  };
  explicit SqlDatabase(std::string file) : file_(std::move(file)) {}

  const std::string file_;
  std::unique_ptr<sqlite3, Close> handle_;
};

}  // namespace ckptd

#endif  // CKPTD_SERVER_JOURNAL_SQLITE_H_
