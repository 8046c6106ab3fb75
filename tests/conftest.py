"""Quick collection, a storage account for all tests, and a word at the end on those skipped."""

import gc
import signal
import threading
from collections.abc import Generator, Iterator

import pytest

from tests.servers import azurite
from tests.services import AZURITE, explained, may_be_skipped


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-services",
        action="store_true",
        help="fail if a test was skipped that needs no SQL Server",
    )


def pytest_configure() -> None:
    """Have programs that the tests start end with Ctrl-C.

    A shell has what it starts in the background ignore it, and so would all that is started by
    that.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, None, None]:
    """Keep modules and tests out of the garbage collector's sight: they stay to the end.

    It would look through millions of objects again and again, a fifth of all the time.
    """
    gc.disable()
    result = yield
    gc.freeze()
    gc.enable()
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> Generator[None, None, None]:
    yield
    reasons = reasons_of(terminalreporter)
    for sentence in explained(reasons):
        terminalreporter.write_line(sentence, yellow=True)
    if config.option.all_services and not all(map(may_be_skipped, reasons)):
        terminalreporter.write_line("With --all-services that is a failure.", red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    # A worker of pytest-xdist reports to its controller, and has no terminal.
    if reporter is None or not session.config.option.all_services:
        return
    if session.exitstatus == 0 and not all(map(may_be_skipped, reasons_of(reporter))):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def reasons_of(reporter: pytest.TerminalReporter) -> list[str]:
    """Give why each skipped test was."""
    reports = reporter.stats.get("skipped", [])
    return [report.longrepr[2].removeprefix("Skipped: ") for report in reports]


@pytest.fixture(scope="session")
def account() -> Iterator[str]:
    """Run Azurite for all tests of this process; gives its connection string."""
    AZURITE.require()
    with azurite() as connection_string:
        yield connection_string
