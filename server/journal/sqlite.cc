#include "server/journal/sqlite.h"

#include "absl/strings/str_cat.h"
#include "proto/status/error_info.h"
#include "proto/status/status_macros.h"

namespace ckptd {
namespace {

absl::Status MakeSqlError(absl::string_view file, absl::string_view action, sqlite3* handle) {
  const int code = sqlite3_errcode(handle);
  const std::string message =
      absl::StrCat("journal ", file, ": cannot ", action, ": ", sqlite3_errmsg(handle));
  switch (code & 0xff) {
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return MakeError(absl::StatusCode::kDataLoss, "JOURNAL_CORRUPT", message);
    case SQLITE_FULL:
      return MakeError(absl::StatusCode::kResourceExhausted, "JOURNAL_ERROR",
                       absl::StrCat(message, "; free space there, or choose another --state-dir"));
    default:
      return MakeError(absl::StatusCode::kInternal, "JOURNAL_ERROR",
                       absl::StrCat(message, "; see that --state-dir can be written to"));
  }
}

}  // namespace

SqlStatement& SqlStatement::Bind(int index, int64_t value) {
  sqlite3_bind_int64(statement_.get(), index, value);
  return *this;
}

SqlStatement& SqlStatement::Bind(int index, const std::string& blob) {
  // A null pointer would make it NULL.
  sqlite3_bind_blob64(statement_.get(), index, blob.empty() ? "" : blob.data(), blob.size(),
                      SQLITE_TRANSIENT);  // NOLINT(performance-no-int-to-ptr): SQLite's own macro
  return *this;
}

SqlStatement& SqlStatement::BindNull(int index) {
  sqlite3_bind_null(statement_.get(), index);
  return *this;
}

absl::StatusOr<bool> SqlStatement::Step() {
  const int code = sqlite3_step(statement_.get());
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) return false;
  sqlite3* handle = sqlite3_db_handle(statement_.get());
  absl::Status status =
      MakeSqlError(sqlite3_db_filename(handle, "main"), "write or read a row", handle);
  sqlite3_reset(statement_.get());
  return status;
}

absl::Status SqlStatement::Run() {
  const absl::Status status = Step().status();
  sqlite3_reset(statement_.get());
  sqlite3_clear_bindings(statement_.get());
  return status;
}

int64_t SqlStatement::Int(int column) const {
  return sqlite3_column_int64(statement_.get(), column);
}

std::string SqlStatement::Blob(int column) const {
  const void* data = sqlite3_column_blob(statement_.get(), column);
  const int size = sqlite3_column_bytes(statement_.get(), column);
  return data == nullptr ? "" : std::string(static_cast<const char*>(data), size);
}

bool SqlStatement::IsNull(int column) const {
  return sqlite3_column_type(statement_.get(), column) == SQLITE_NULL;
}

absl::StatusOr<std::unique_ptr<SqlDatabase>> SqlDatabase::Open(const std::string& file) {
  std::unique_ptr<SqlDatabase> database(new SqlDatabase(file));
  sqlite3* handle = nullptr;
  const int code =
      sqlite3_open_v2(file.c_str(), &handle,
                      SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOFOLLOW, nullptr);
  database->handle_.reset(handle);
  if (code != SQLITE_OK) return MakeSqlError(file, "open it", handle);
  sqlite3_extended_result_codes(handle, 1);
  return database;
}

absl::Status SqlDatabase::Error(absl::string_view action) const {
  return MakeSqlError(file_, action, handle_.get());
}

absl::Status SqlDatabase::Execute(const std::string& sql) {
  if (sqlite3_exec(handle_.get(), sql.c_str(), nullptr, nullptr, nullptr) == SQLITE_OK) {
    return absl::OkStatus();
  }
  return Error("set it up");
}

absl::StatusOr<SqlStatement> SqlDatabase::Prepare(const std::string& sql) {
  SqlStatement statement;
  sqlite3_stmt* prepared = nullptr;
  if (sqlite3_prepare_v3(handle_.get(), sql.c_str(), static_cast<int>(sql.size()),
                         SQLITE_PREPARE_PERSISTENT, &prepared, nullptr) != SQLITE_OK) {
    return Error("read its tables");
  }
  statement.statement_.reset(prepared);
  return statement;
}

absl::StatusOr<int64_t> SqlDatabase::Number(const std::string& sql) {
  CKPTD_ASSIGN_OR_RETURN(SqlStatement statement, Prepare(sql));
  CKPTD_ASSIGN_OR_RETURN(const bool row, statement.Step());
  return row ? statement.Int(0) : 0;
}

}  // namespace ckptd
