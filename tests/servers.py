"""Real servers that the tests start themselves, on ports of their own, and stop again."""

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from sqlalchemy import make_url

from tests.services import azurite_program, pgbouncer_program, postgresql_programs


@contextmanager
def postgresql(*, durable: bool = False) -> Iterator["PostgreSql"]:
    """Start a server with an empty cluster; only a durable one waits for its disk."""
    folder = Path(tempfile.mkdtemp(prefix="scoring-postgresql-"))
    server = PostgreSql(folder, durable=durable)
    try:
        server.make()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


class PostgreSql:
    """One server and its folder; it can be stopped and started again."""

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        self._folder = folder
        self._fsync = "on" if durable else "off"
        self._port = free_port()
        # The server refuses to run as root.
        self._user = "postgres" if os.geteuid() == 0 else getpass.getuser()

    def url(self, database: str = "postgres") -> str:
        """Give the URL of a database."""
        return f"postgresql://{self._user}@127.0.0.1:{self._port}/{database}"

    def make(self) -> None:
        """Make the cluster."""
        shutil.chown(self._folder, self._user)
        self._run("initdb", "-D", "data", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        options = f"-p {self._port} -h 127.0.0.1 -k {self._folder} -c fsync={self._fsync}"
        self._run("pg_ctl", "-D", "data", "-w", "-t", "60", "-l", "log", "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop the server, if it runs: ``fast`` as an operator does, ``immediate`` as a crash."""
        self._run("pg_ctl", "-D", "data", "-m", mode, "-w", "stop", check=False)

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Run a statement outside any transaction."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            connection.execute(statement.encode())

    def _run(self, program: str, *arguments: str, check: bool = True) -> None:
        programs = postgresql_programs()
        assert programs is not None, "PostgreSQL is not installed"
        subprocess.run(
            [programs / program, *arguments],
            cwd=self._folder,
            user=self._user if os.geteuid() == 0 else None,
            check=check,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=120,
        )


@contextmanager
def pgbouncer(server: PostgreSql, folder: Path) -> Iterator[Callable[[str], str]]:
    """Run PgBouncer in transaction mode before a server; gives the URL of a database by its name.

    It has two connections for each database, so that transactions change theirs all the time.
    """
    program = pgbouncer_program()
    assert program is not None, "PgBouncer is not installed"
    port, behind = free_port(), make_url(server.url())
    (folder / "pgbouncer.ini").write_text(
        "[databases]\n"
        f"* = host=127.0.0.1 port={behind.port} user={behind.username}\n"
        "[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        "auth_type = any\n"
        "pool_mode = transaction\ndefault_pool_size = 2\nserver_round_robin = 1\n"
    )
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, user)
    with subprocess.Popen(
        [program, "pgbouncer.ini"],
        cwd=folder,
        user=user,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            _wait_for(port, process)
            yield lambda name: behind.set(port=port, database=name).render_as_string()
        finally:
            process.terminate()


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def azurite() -> Iterator[str]:
    """Run Azurite's blob service in memory; gives its connection string."""
    port = free_port()
    # The SDK is newer than the API versions that Azurite knows.
    options = ["--inMemoryPersistence", "--skipApiVersionCheck", "--silent", "--disableTelemetry"]
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [str(azurite_program()), "--blobPort", str(port), *options],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_for(port, server)
            yield AZURITE.format(port=port)
        finally:
            server.terminate()
            server.wait(timeout=30)


# Account and key are those of every Azurite: public, and no secret.
AZURITE = (
    "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey="
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==;"
    "BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1"
)


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    """Wait until somebody listens."""
    deadline = time.monotonic() + 60
    while True:
        assert server.poll() is None, "the server ended by itself"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.05)
        else:
            return
