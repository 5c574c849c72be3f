"""The file of the ledger: an SQLite database whose rows have a checksum each.

Damage that SQLite cannot notice, such as a flipped bit in a number, is an error, as is a row whose values have other
types. Rows of format 1 have no checksum; they get one when the file is first written.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from fullbatch.runtime.locks import has_record_locks, hold_lock

APPLICATION, VERSION = 0x46424C47, 2  # "FBLG"
SECONDS_TO_WAIT = 60.0
MAX_BYTES = 2**22
"""Longest row; nothing that a run writes comes near it."""

TYPES: dict[str, dict[str, Any]] = {
    "attempts": {
        **{"number": int, "job": str, "configuration": str, "name": str, "data": str, "overrides": str, "steps": int},
        **{"circumstances": str, "folder": str, "state": str, "message": str, "result": str, "host": str},
        **{"process": int, "started": float, "ended": float | None},
    },
    "planned": {"sweep": str, "number": int, "overrides": str, "job": str | None},
}
"""Table -> column -> type of its values."""
_FORMAT_1 = (
    "CREATE TABLE attempts (number INTEGER PRIMARY KEY, job TEXT NOT NULL, configuration TEXT NOT NULL, "
    "name TEXT NOT NULL, data TEXT NOT NULL, overrides TEXT NOT NULL, steps INTEGER NOT NULL, "
    "circumstances TEXT NOT NULL, folder TEXT NOT NULL, state TEXT NOT NULL, message TEXT NOT NULL, "
    "result TEXT NOT NULL, host TEXT NOT NULL, process INTEGER NOT NULL, started REAL NOT NULL, ended REAL)",
    "CREATE INDEX jobs ON attempts (job)",
    "CREATE TABLE planned (sweep TEXT NOT NULL, number INTEGER NOT NULL, overrides TEXT NOT NULL, job TEXT, "
    "PRIMARY KEY (sweep, number))",
)
_FORMAT_2 = tuple(f"ALTER TABLE {table} ADD COLUMN checksum TEXT" for table in TYPES)


class LedgerFile:
    """The file ``path``, which is opened for one transaction at a time.

    Raises ``ValueError`` if the file is damaged, belongs to another program or cannot be written; the file is then left
    untouched.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def open(self, *, write: bool) -> Iterator["Transaction"]:
        """Begin a transaction, which is committed when the context ends without an error.

        ``write`` takes the write lock at once, makes the file if it is missing and brings it to the newest format.
        """
        if write:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        address = f"{self.path.absolute().as_uri()}?mode={'rwc' if write else 'rw'}"
        try:
            with (
                self._replaced_locks() as options,
                closing(
                    sqlite3.connect(address + options, SECONDS_TO_WAIT, isolation_level=None, uri=True)
                ) as connection,
            ):
                connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_BYTES)
                connection.row_factory = sqlite3.Row
                connection.execute("PRAGMA trusted_schema = OFF")
                connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                yield self._checked(connection, write)
                connection.execute("COMMIT")
        except sqlite3.OperationalError as error:  # locked, read-only, full disk
            raise ValueError(f"{self.path}: {error}") from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # text, or messages of SQLite, with damaged bytes
            raise self.damaged(str(error)) from error

    @contextmanager
    def _replaced_locks(self) -> Iterator[str]:
        """Lock the file where SQLite cannot, for want of locks in the file system; yield what makes it not try."""
        if not self.path.parent.is_dir() or has_record_locks(self.path.parent):
            yield ""
            return
        lock = self.path.with_name(f".{self.path.name}.lock")
        with hold_lock(lock, f"{self.path}: locked by another process ({lock})", timeout=SECONDS_TO_WAIT):
            yield "&vfs=unix-none"

    def damaged(self, reason: str) -> ValueError:
        """Return the error for a file with this damage."""
        reason = " ".join(reason.split())
        return ValueError(
            f"{self.path}: not an intact ledger ({reason}); left untouched: move it away to start a new one"
        )

    def _checked(self, connection: sqlite3.Connection, write: bool) -> "Transaction":
        def pragma(statement: str) -> Any:
            return connection.execute(f"PRAGMA {statement}").fetchone()[0]

        program, version = pragma("application_id"), pragma("user_version")
        is_new = program == version == 0 == connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if is_new and write:
            for statement in (f"PRAGMA application_id = {APPLICATION}", *_FORMAT_1):
                connection.execute(statement)
            version = 1
        elif is_new or program != APPLICATION:
            raise self.damaged("made by another program")
        elif version not in (1, VERSION):
            raise ValueError(f"{self.path}: a ledger of format {version}; this version reads formats 1 and {VERSION}")
        elif (result := pragma("integrity_check(1)")) != "ok":
            raise self.damaged(result)
        elif _schema(connection) != _schema_of(version):
            raise self.damaged("other tables, columns, indices or triggers")
        if write and version == 1:
            self._upgrade(connection)
            version = VERSION
        return Transaction(self, connection, has_checksums=version == VERSION)

    def _upgrade(self, connection: sqlite3.Connection) -> None:
        old, new = (Transaction(self, connection, has_checksums=flag) for flag in (False, True))
        rows = {table: old.rows(table) for table in TYPES}
        for statement in (*_FORMAT_2, f"PRAGMA user_version = {VERSION}"):
            connection.execute(statement)
        for table, its_rows in rows.items():
            for row in its_rows:
                new.put(table, row)


class Transaction:
    """Reads and writes rows of an open ledger: dictionaries with the columns of ``TYPES``."""

    def __init__(self, file: LedgerFile, connection: sqlite3.Connection, *, has_checksums: bool) -> None:
        self._file, self._connection, self._has_checksums = file, connection, has_checksums

    def rows(self, table: str, condition: str = "", *values: object) -> list[dict[str, Any]]:
        """Return the rows that satisfy a condition, in the order in which they were added."""
        found = self._connection.execute(f"SELECT * FROM {table} {condition} ORDER BY rowid", values)
        return [self._verified(table, dict(row)) for row in found]

    def put(self, table: str, row: Mapping[str, object]) -> None:
        """Add a row, or replace the one with the same key."""
        stored = {**row, "checksum": _checksum(table, row)}
        columns, values = ", ".join(stored), ", ".join(f":{name}" for name in stored)
        self._connection.execute(f"INSERT OR REPLACE INTO {table} ({columns}) VALUES ({values})", stored)

    def forget(self, job: str) -> None:
        """Remove all rows of a job."""
        for table in TYPES:
            self._connection.execute(f"DELETE FROM {table} WHERE job = ?", (job,))

    def _verified(self, table: str, row: dict[str, Any]) -> dict[str, Any]:
        checksum, where = row.pop("checksum", None), f"row {row['number']} of {table}"
        for column, kind in TYPES[table].items():
            if not isinstance(row[column], kind):
                raise self._file.damaged(f"{where}: {column} is {str(row[column])[:40]!r}")
        if self._has_checksums and checksum != _checksum(table, row):
            raise self._file.damaged(f"{where}: its checksum is that of other values")
        return row


def _checksum(table: str, row: Mapping[str, object]) -> str:
    content = json.dumps([table, *(row[column] for column in TYPES[table])])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _schema(connection: sqlite3.Connection) -> list[tuple[object, ...]]:
    return sorted(tuple(row) for row in connection.execute("SELECT type, name, coalesce(sql, '') FROM sqlite_master"))


def _schema_of(version: int) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(":memory:")) as connection:
        for statement in _FORMAT_1 if version == 1 else _FORMAT_1 + _FORMAT_2:
            connection.execute(statement)
        return _schema(connection)
