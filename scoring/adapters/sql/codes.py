"""What each database's error codes mean: one table of SQLSTATEs, and one of SQL Server's numbers.

Sources
-------
LIST
    "Troubleshoot connectivity issues and other errors", the list of transient fault error codes
    and the sections on resource governance and elastic pools,
    https://learn.microsoft.com/azure/azure-sql/database/troubleshoot-common-errors-issues
BASELINE
    ``SqlConfigurableRetryFactory.BaselineTransientErrors``,
    https://learn.microsoft.com/dotnet/api/microsoft.data.sqlclient.sqlconfigurableretryfactory.baselinetransienterrors
EVENTS
    "Database Engine events and errors", every number with its text,
    https://learn.microsoft.com/sql/relational-databases/errors-events/database-engine-events-and-errors
POSTGRESQL
    https://www.postgresql.org/docs/current/errcodes-appendix.html
ODBC
    https://learn.microsoft.com/sql/odbc/reference/appendixes/appendix-a-odbc-error-codes
SQLITE
    https://www.sqlite.org/rescode.html
"""

import sqlite3
from enum import Enum, auto
from types import MappingProxyType
from typing import Final

RECONFIGURATION_WAIT = 5.0
"""Seconds before a retry while Azure SQL reconfigures a database.

LIST: "delay for 5 seconds before your first retry"; sooner risks overwhelming the service.
"""


class Meaning(Enum):
    """What the program makes of an error."""

    TRANSIENT = auto()
    """The same again may succeed."""
    RECONFIGURING = auto()
    """The same, but only after `RECONFIGURATION_WAIT`."""
    NO_DATABASE = auto()
    """A setup mistake until the process has connected once; afterwards `RECONFIGURING`."""
    DUPLICATE = auto()
    """A row with the key exists already."""
    DATA = auto()
    """A value is refused."""
    UNUSABLE = auto()
    """The database is full, read-only or damaged."""
    REFUSED = auto()
    """A setup mistake: the database does not let the program in, or not do what it must."""
    POOLED = auto()
    """A setup mistake: a pooler in between, of which the program was not told."""
    NO_DRIVER = auto()
    """A setup mistake: the driver that the connection string names is not installed."""


_T, _R, _U, _S = Meaning.TRANSIENT, Meaning.RECONFIGURING, Meaning.UNUSABLE, Meaning.REFUSED

NUMBERS: Final = MappingProxyType(
    {
        # LIST: the database moves, or the service protects itself.
        40197: _R,  # the service has encountered an error processing the request
        40501: _R,  # the service is busy
        40613: _R,  # the database is not currently available
        49918: _R,  # not enough resources to process the request
        49919: _R,  # too many create or update operations in progress
        49920: _R,  # too many operations in progress
        4060: Meaning.NO_DATABASE,  # cannot open the database requested by the login
        615: _T,  # could not find the database by its id: the connection's cache is stale
        926: _T,  # the database is marked suspect: at the end of a reconfiguration
        4221: _T,  # login to a read-secondary waits for the primary's transactions
        # LIST: limits of the resource governor and of elastic pools.
        10928: _T,  # the limit of workers or sessions has been reached
        10929: _T,  # the server is too busy to support more than the minimum guarantee
        10936: _T,  # the elastic pool's limit of requests has been reached
        # LIST: a session was terminated, and its transaction with it.
        40549: _T,  # a long transaction
        40550: _T,  # too many locks
        40551: _T,  # too much of tempdb
        40552: _T,  # too much transaction log
        40553: _T,  # too much memory
        # EVENTS: locks and snapshots.
        1204: _T,  # no lock resource can be had
        1205: _T,  # deadlock victim
        1222: _T,  # lock request timeout
        3960: _T,  # snapshot isolation: update conflict
        # EVENTS: memory.
        701: _T,  # insufficient system memory in the resource pool
        802: _T,  # insufficient memory in the buffer pool
        8645: _T,  # timeout while waiting for memory to execute the query
        8651: _T,  # the requested minimum memory is not available
        # EVENTS and BASELINE: the server shuts down, or the connection goes.
        233: _T,  # error during the login process after the connection was made
        596: _T,  # the session is in the kill state
        6005: _T,  # shutdown is in progress
        976: _T,  # the database of an availability group does not move data
        983: _T,  # the availability replica is in the resolving role
        # EVENTS: constraints.
        2601: Meaning.DUPLICATE,  # of a unique index
        2627: Meaning.DUPLICATE,  # of a constraint
        # LIST and EVENTS: no room, or not writable.
        40544: _U,  # the database has reached its size quota
        1132: _U,  # the elastic pool has reached its storage limit
        1101: _U,  # no new page: the filegroup is full
        1105: _U,  # no space for an object: the filegroup is full
        1827: _U,  # the edition's licensed limit per database would be exceeded
        9002: _U,  # the transaction log is full
        3906: _U,  # the database is read-only
        823: _U,  # an input or output error of the operating system
        824: _U,  # a page fails its consistency check
        20: _S,  # of the driver: the server does not support encryption
        # LIST and EVENTS: who signs in, from where, and with what permissions.
        18452: _S,  # the login is from an untrusted domain
        18456: _S,  # login failed
        18470: _S,  # the account is disabled
        18486: _S,  # the account is locked out
        18487: _S,  # the password has expired
        18488: _S,  # the password must be changed
        4064: _S,  # cannot open the user's default database
        916: _S,  # the login has no access to the database
        229: _S,  # a permission on an object was denied
        262: _S,  # the permission to create was denied
        40532: _S,  # cannot open the server that the login requested
        40607: _S,  # Windows logins are not supported
        40615: _S,  # the firewall does not allow the client's address
        40914: _S,  # the client is in no subnet that the server allows
        47073: _S,  # the server denies access from public networks
    }
)
"""SQL Server's and Azure SQL's native error numbers."""

STATES: Final = MappingProxyType(
    {
        # POSTGRESQL and ODBC; a state stands before its class of two characters.
        "40001": _T,  # serialization failure, deadlock in SQL Server
        "40P01": _T,  # deadlock
        "55P03": _T,  # lock not available
        "57014": _T,  # statement timeout
        "57P01": _T,  # the server shuts down
        "57P02": _T,  # the server has crashed
        "57P03": _T,  # the server starts up
        "57P05": _T,  # idle session timeout
        "25P03": _T,  # idle in transaction timeout
        "53200": _T,  # out of memory
        "53300": _T,  # too many connections
        "HYT00": _T,  # timeout of a query or a login
        "HYT01": _T,  # timeout of a connection
        "08": _T,  # connection
        "23505": Meaning.DUPLICATE,
        "26000": Meaning.POOLED,  # no such prepared statement: another connection has it
        "42P05": Meaning.POOLED,  # a prepared statement of that name is there already
        "53100": _U,  # disk full
        "25006": _U,  # read-only transaction
        "58030": _U,  # input or output error
        "XX001": _U,  # data corrupted
        "3D000": _S,  # no such database
        "42501": _S,  # insufficient privilege
        "28": _S,  # authorization
        "IM002": Meaning.NO_DRIVER,  # data source not found
        "IM003": Meaning.NO_DRIVER,  # the driver could not be loaded
        "01000": Meaning.NO_DRIVER,  # unixODBC: cannot open the driver's library
        "21": Meaning.DATA,  # cardinality: two rows of one key in a statement
        "22": Meaning.DATA,  # data exception
        "23": Meaning.DATA,  # integrity constraint
    }
)
"""SQLSTATEs of PostgreSQL and ODBC; two characters stand for a whole class."""

ENCRYPTION: Final = (
    *("certificate", "unsupported protocol", "handshake failure"),
    "openssl library could not be loaded",
)
"""Words of a connection that was refused because of its encryption.

The driver gives all of OpenSSL's errors one state, 08001, and one number, -1. The words come from
OpenSSL, never from data.
"""


SQLITE: Final = MappingProxyType(
    {
        sqlite3.SQLITE_BUSY: _T,
        sqlite3.SQLITE_LOCKED: _T,
        sqlite3.SQLITE_FULL: _U,
        sqlite3.SQLITE_READONLY: _U,
        sqlite3.SQLITE_IOERR: _U,
        sqlite3.SQLITE_CORRUPT: _U,
        sqlite3.SQLITE_NOTADB: _U,
        sqlite3.SQLITE_CANTOPEN: _U,
    }
)
"""SQLite's primary result codes."""


def meaning(state: str | None, number: int | None) -> Meaning | None:
    """Return what a server's error means; None for one that is not known.

    SQL Server's numbers decide before its SQLSTATEs, which are one for many errors.
    """
    if number is not None and number in NUMBERS:
        return NUMBERS[number]
    if state is None:
        return None
    return STATES.get(state) or STATES.get(state[:2])
