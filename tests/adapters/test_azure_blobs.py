"""Blobs in a container, on Azurite: the same promises as a folder's."""

import gc
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.core.exceptions import ServiceResponseError
from azure.core.pipeline.transport import RequestsTransport
from azure.storage.blob import (
    ContainerClient,
    ContainerSasPermissions,
    ExponentialRetry,
    generate_container_sas,
)

from scoring.adapters import azure_blobs
from scoring.adapters.azure_blobs import AzureBlobs
from scoring.errors import (
    BadInput,
    Conflict,
    Misconfigured,
    NotFound,
    ScoringError,
    StorageUnusable,
    Transient,
)
from scoring.handlers.logs import RunLogs
from scoring.ports import Blobs
from tests.adapters.blob_account import Account, blob_account
from tests.servers import free_port


@pytest.fixture
def blobs(account: str) -> Blobs:
    return AzureBlobs.connect(account, f"c{uuid.uuid4().hex}")


def names(blobs: Blobs, prefix: str = "") -> list[str]:
    return [blob.name for blob in blobs.list(prefix)]


@pytest.mark.parametrize("data", [b"", b"\x00\xff", b"x" * 9_000_000])
def test_what_was_written_is_read(blobs: Blobs, data: bytes) -> None:
    written = blobs.write("a/b/c.bin", data)

    assert blobs.read("a/b/c.bin") == (data, written)
    assert list(blobs.list("")) == [written]
    assert (written.name, written.size) == ("a/b/c.bin", len(data))


def test_a_blob_that_is_not_there_is_not_found(blobs: Blobs) -> None:
    with pytest.raises(NotFound, match="no blob 'a/b'"):
        blobs.read("a/b")


def test_a_blob_is_written_over_what_stood_there_and_its_tag_changes(blobs: Blobs) -> None:
    before = blobs.write("a", b"long before")
    after = blobs.write("a", b"now")

    assert blobs.read("a") == (b"now", after)
    assert before.etag != after.etag
    assert names(blobs) == ["a"]


def test_a_prefix_is_one_of_names_and_not_of_folders(blobs: Blobs) -> None:
    for name in ("runs/r2/a", "runs/r1/b", "runs/r10/a", "runs/r1/a", "runs.txt"):
        blobs.write(name, b"1")

    assert names(blobs, "runs/r1") == ["runs/r1/a", "runs/r1/b", "runs/r10/a"]
    assert names(blobs, "runs/r1/") == ["runs/r1/a", "runs/r1/b"]
    assert names(blobs, "nothing/") == []

    blobs.delete("runs/r1/")
    blobs.delete("nothing/")

    assert names(blobs) == ["runs.txt", "runs/r10/a", "runs/r2/a"]


def test_blobs_become_files_named_after_the_prefix(blobs: Blobs, tmp_path: Path) -> None:
    for name in ("r/a", "r/deep/b", "other/c"):
        blobs.write(name, name.encode())

    blobs.fetch("r/", tmp_path)
    blobs.fetch("nothing/", tmp_path / "nothing")

    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert {path.as_posix(): (tmp_path / path).read_bytes() for path in files} == {
        "a": b"r/a",
        "deep/b": b"r/deep/b",
    }


@pytest.mark.parametrize("name", ["r/../../evil", "r//etc/evil", "r/..", "r/a\\..\\evil", "r/."])
def test_a_blob_whose_name_leads_elsewhere_is_neither_read_nor_fetched(
    blobs: AzureBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (blobs.write("r/a", b"1"), blobs.write("evil", b"2"))
    listed = list(blobs._container.list_blobs())
    next(one for one in listed if one.name == "evil").name = name
    monkeypatch.setattr(blobs._container, "list_blobs", lambda *_, **__: iter(listed))

    blobs.fetch("r/", tmp_path / "deep" / "here")

    assert names(blobs) == ["r/a"]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a"]
    for act in (
        blobs.read,
        lambda name: blobs.write(name, b""),
        lambda name: blobs.create(name, b""),
        lambda name: blobs.replace(name, b"", "0x1"),
    ):
        with pytest.raises(BadInput, match="is not a blob's name"):
            act(name)


def test_a_container_that_is_there_is_used(account: str) -> None:
    AzureBlobs.connect(account, "shared").write("a", b"1")

    assert AzureBlobs.connect(account, "shared").read("a")[0] == b"1"


def test_an_account_that_does_not_answer_is_transient(account: str) -> None:
    nobody = account.rpartition(":")[0] + f":{free_port()}/devstoreaccount1"
    container = ContainerClient.from_connection_string(nobody, "nobody", retry_total=0)

    with pytest.raises(Transient, match="does not answer for 'a'"):
        AzureBlobs(container).write("a", b"1")


@pytest.fixture
def silent(account: str) -> Iterator[str]:
    """Give the way to an account that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        port = server.getsockname()[1]
        yield account.rpartition(":")[0] + f":{port}/devstoreaccount1"


def test_an_account_that_takes_requests_and_never_answers_is_given_up_naming_the_blob(
    account: str, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The account that answers is given its time: the machine may be busy.
    blobs = AzureBlobs.connect(account, "quiet")
    monkeypatch.setattr(azure_blobs, "READ_TIMEOUT", 0.05)
    monkeypatch.setattr(azure_blobs, "RETRIES", 0)
    container = ContainerClient.from_connection_string(silent, "quiet", **azure_blobs._options())
    blobs._container = container

    uses: dict[str, Callable[[], object]] = {
        "raw/a": lambda: blobs.create("raw/a", b"1"),
        "raw/b": lambda: blobs.write("raw/b", b"1"),
        "raw/c": lambda: blobs.read("raw/c"),
        "raw/": lambda: list(blobs.list("raw/")),
        "quiet": lambda: AzureBlobs(container).make_container(),
    }
    for name, use in uses.items():
        with pytest.raises(Transient, match=f"does not answer for '{name}'.*timed out"):
            use()


def test_an_operation_without_answer_gives_up_within_some_75_seconds() -> None:
    options = azure_blobs._options()
    retries, tried = options["retry_policy"], azure_blobs.RETRIES + 1
    pauses = [retries.get_backoff_time({"count": count}) for count in range(1, tried)]

    assert options["connection_timeout"] <= options["read_timeout"]
    assert tried * options["read_timeout"] + sum(pauses) == pytest.approx(75, abs=5)
    assert sum(pauses) == pytest.approx(15, abs=4)


def test_another_key_is_refused_as_a_setting(account: str) -> None:
    wrong = account.replace("Eby8vdM0", "AAAAAAAA")

    with pytest.raises(Misconfigured, match="denies access"):
        AzureBlobs.connect(wrong, "denied").write("a", b"1")


def test_a_text_that_is_no_connection_string_is_refused_as_a_setting() -> None:
    with pytest.raises(Misconfigured, match="neither a URL nor a connection string"):
        AzureBlobs.connect("nonsense", "c")


class Network(RequestsTransport):  # type: ignore[misc]  # azure.core gives it untyped
    """The way to the account, where things may happen.

    Attributes
    ----------
    after
        Called with each request once the service has answered it; may raise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.after: Callable[[Any], None] = lambda _: None
        self.sent: list[str] = []

    def send(self, request: Any, **options: Any) -> Any:
        answer = super().send(request, **options)
        self.sent.append(request.method)
        try:
            self.after(request)
        except BaseException:
            answer.internal_response.close()
            raise
        return answer


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
def distant(account: str, network: Network) -> AzureBlobs:
    """Give blobs over a network of which answers get lost; small pieces only."""
    sizes = ("max_single_get_size", "max_chunk_get_size", "max_single_put_size", "max_block_size")
    pieces: dict[str, Any] = dict.fromkeys(sizes, 1000)
    container = ContainerClient.from_connection_string(
        account,
        f"c{uuid.uuid4().hex}",
        transport=network,
        # It tries again at once.
        retry_policy=ExponentialRetry(0, 0, retry_total=3, random_jitter_range=0),
        **pieces,
    )
    blobs = AzureBlobs(container)
    blobs.make_container()
    return blobs


def losing(network: Network, method: str, times: int, what: str = "") -> Callable[[Any], None]:
    """Have the answers to some requests get lost; the service has done what they asked."""
    left = [times]

    def lose(request: Any) -> None:
        if request.method == method and what in request.url and left[0]:
            left[0] -= 1
            message = "the connection was reset"
            raise ServiceResponseError(message)

    return lose


SMALL, LARGE = b"ours", b"0123456789" * 1000
ONE_PIECE_OR_MANY = pytest.mark.parametrize(
    ("data", "last_step"), [(SMALL, ""), (LARGE, "comp=blocklist")], ids=["put", "block list"]
)


class TestLostAnswers:
    @ONE_PIECE_OR_MANY
    def test_a_blob_that_was_created_without_a_word_is_no_conflict(
        self, distant: AzureBlobs, network: Network, data: bytes, last_step: str
    ) -> None:
        network.after = losing(network, "PUT", 1, last_step)

        created = distant.create("a", data)

        assert distant.read("a") == (data, created)

    @ONE_PIECE_OR_MANY
    def test_a_blob_that_was_replaced_without_a_word_is_no_conflict(
        self, distant: AzureBlobs, network: Network, data: bytes, last_step: str
    ) -> None:
        before = distant.write("a", b"before")
        network.after = losing(network, "PUT", 1, last_step)

        after = distant.replace("a", data, before.etag)

        assert distant.read("a") == (data, after)
        assert after.etag != before.etag

    def test_where_no_answer_ever_comes_doing_it_again_finds_it_done(
        self, distant: AzureBlobs, network: Network
    ) -> None:
        network.after = losing(network, "PUT", 1000)
        with pytest.raises(Transient, match="does not answer for 'a'"):
            distant.create("a", SMALL)
        network.after = losing(network, "PUT", 0)

        assert distant.create("a", SMALL) == distant.read("a")[1]

    def test_a_lost_answer_does_not_hide_that_another_writer_was_first(
        self, distant: AzureBlobs, network: Network, account: str
    ) -> None:
        seen = distant.write("a", b"seen")
        other = distant.write("a", b"theirs")
        network.after = losing(network, "PUT", 1)

        with pytest.raises(Conflict):
            distant.replace("a", SMALL, seen.etag)

        assert distant.read("a") == (b"theirs", other)

    def test_a_lost_answer_to_a_read_is_asked_for_again(
        self, distant: AzureBlobs, network: Network
    ) -> None:
        written = distant.write("a", LARGE)
        network.after = losing(network, "GET", 2)

        assert distant.read("a") == (LARGE, written)


class TestOneMoment:
    @pytest.fixture
    def torn(self, distant: AzureBlobs, network: Network) -> AzureBlobs:
        """Have a blob written over while it is read, once its first piece is there."""
        distant.write("r/a", LARGE)

        def write_over(request: Any) -> None:
            if request.method == "GET" and "r/a" in request.url:
                network.after = lambda _: None
                distant.write("r/a", LARGE[::-1])

        network.after = write_over
        return distant

    def test_a_blob_that_is_written_while_it_is_read_is_never_read_as_a_mixture(
        self, torn: AzureBlobs
    ) -> None:
        with pytest.raises(Transient, match="'r/a' was written while it was read"):
            torn.read("r/a")

        assert torn.read("r/a")[0] == LARGE[::-1]

    def test_a_blob_that_is_filled_while_it_is_read_is_not_taken_for_empty(
        self, distant: AzureBlobs, network: Network
    ) -> None:
        distant.write("a", b"")

        def fill(request: Any) -> None:
            if request.method == "GET":
                network.after = lambda _: None
                distant.write("a", SMALL)

        network.after = fill

        with pytest.raises(Transient, match="'a' was written while it was read"):
            distant.read("a")

        assert distant.read("a")[0] == SMALL

    def test_a_blob_that_is_written_while_it_is_fetched_leaves_the_file_that_was_there(
        self, torn: AzureBlobs, tmp_path: Path
    ) -> None:
        (tmp_path / "a").write_bytes(b"fetched before")

        with pytest.raises(Transient):
            torn.fetch("r/", tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
            "a": b"fetched before"
        }

        torn.fetch("r/", tmp_path)
        assert (tmp_path / "a").read_bytes() == LARGE[::-1]

    def test_a_large_blob_is_fetched_piece_by_piece_into_one_file(
        self, distant: AzureBlobs, network: Network, tmp_path: Path
    ) -> None:
        distant.write("r/a", LARGE)
        network.sent.clear()

        distant.fetch("r/", tmp_path)

        assert (tmp_path / "a").read_bytes() == LARGE
        assert network.sent.count("GET") == 1 + len(LARGE) // 1000

    def test_an_interrupted_fetch_leaves_no_half_of_a_file(
        self, distant: AzureBlobs, network: Network, tmp_path: Path
    ) -> None:
        distant.write("r/a", LARGE)

        def interrupt(request: Any) -> None:
            if network.sent.count("GET") > 5:
                raise KeyboardInterrupt

        network.sent.clear()
        network.after = interrupt
        with pytest.raises(KeyboardInterrupt):
            distant.fetch("r/", tmp_path)

        assert list(tmp_path.iterdir()) == []

    def test_what_a_killed_process_had_half_fetched_is_removed_a_day_later(
        self, blobs: Blobs, tmp_path: Path
    ) -> None:
        old, new = tmp_path / ".writing-old", tmp_path / ".writing-new"
        for draft in (old, new):
            draft.write_bytes(b"half")
        os.utime(old, (0, 0))

        blobs.fetch("nothing/", tmp_path)

        assert [path.name for path in tmp_path.iterdir()] == [".writing-new"]


def container_of(connection: str, name: str) -> ContainerClient:
    return ContainerClient.from_connection_string(connection, name)


@pytest.fixture
def container(account: str) -> Iterator[ContainerClient]:
    """Give a container that is not there."""
    with container_of(account, f"c{uuid.uuid4().hex}") as container:
        yield container


class TestContainer:
    """On Azurite: the container comes with the first write, and again after it was deleted."""

    def test_who_only_looks_creates_no_container(
        self, container: ContainerClient, tmp_path: Path
    ) -> None:
        blobs = AzureBlobs(container)

        with pytest.raises(
            NotFound, match=f"no blob 'a': there is no container '{_name(container)}"
        ):
            blobs.read("a")
        assert names(blobs) == []
        blobs.delete("a")
        blobs.fetch("", tmp_path)

        assert not container.exists()

    @pytest.mark.parametrize("write", [AzureBlobs.write, AzureBlobs.create])
    def test_a_write_creates_the_container(
        self, container: ContainerClient, write: Callable[[AzureBlobs, str, bytes], object]
    ) -> None:
        write(AzureBlobs(container), "a", b"1")

        assert AzureBlobs(container).read("a")[0] == b"1"

    def test_a_file_is_written_whole_where_the_container_had_to_be_created_first(
        self, container: ContainerClient, tmp_path: Path
    ) -> None:
        (tmp_path / "a").write_bytes(b"x" * 9_000_000)

        AzureBlobs(container).write("a", tmp_path / "a")

        assert AzureBlobs(container).read("a")[0] == b"x" * 9_000_000

    def test_a_container_that_is_deleted_under_a_running_app_is_created_again(
        self, container: ContainerClient
    ) -> None:
        blobs = AzureBlobs(container)
        old = blobs.write("a", b"old")

        container.delete_container()
        with pytest.raises(NotFound, match="there is no container"):
            blobs.read("a")
        with pytest.raises(Conflict):
            blobs.replace("a", b"new", old.etag)
        new = blobs.create("a", b"new")

        assert blobs.read("a") == (b"new", new)

    def test_many_who_find_no_container_at_once_all_write(self, container: ContainerClient) -> None:
        blobs = AzureBlobs(container)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: blobs.write(f"{n}", b"1"), range(8)))

        assert names(blobs) == [f"{n}" for n in range(8)]

    def test_a_container_is_created_for_others_once(self, container: ContainerClient) -> None:
        for _ in range(2):
            AzureBlobs(container).make_container()

        assert container.exists()

    @pytest.mark.parametrize("there", [True, False])
    def test_a_signature_of_a_container_needs_the_container(
        self, account: str, container: ContainerClient, *, there: bool
    ) -> None:
        if there:
            container.create_container()
        with _signed(account, container) as signed:
            blobs = AzureBlobs(signed)
            if there:
                blobs.make_container()
                assert blobs.write("a", b"1") == blobs.read("a")[1]
                return
            for use in (blobs.make_container, lambda: blobs.write("a", b"1")):
                with pytest.raises(Misconfigured, match=r"has no container.*create it, or allow"):
                    use()

    def test_snapshots_go_with_their_blob(self, container: ContainerClient) -> None:
        blobs = AzureBlobs(container)
        blobs.write("raw/a", b"1")
        container.get_blob_client("raw/a").create_snapshot()

        blobs.delete("raw/")

        assert [*container.list_blobs(include=["snapshots"])] == []

    def test_what_stands_for_a_directory_is_no_blob(self, container: ContainerClient) -> None:
        blobs = AzureBlobs(container)
        blobs.write("logs/a/b.txt", b"1")
        for name in ("logs", "logs/a", "logs/empty"):
            container.upload_blob(name, b"", metadata={"Hdi_isfolder": "True"})

        assert names(blobs) == ["logs/a/b.txt"]
        with pytest.raises(NotFound, match="it is a directory"):
            blobs.read("logs/a")

        blobs.delete("logs")
        assert [*container.list_blob_names()] == []


def _name(container: ContainerClient) -> str:
    return str(container.container_name)


def _signed(account: str, container: ContainerClient) -> ContainerClient:
    """Give a container by a signature that may do all in it, and nothing with it."""
    pairs = dict(pair.split("=", 1) for pair in account.split(";") if pair)
    signature = generate_container_sas(
        pairs["AccountName"],
        _name(container),
        account_key=pairs["AccountKey"],
        permission=ContainerSasPermissions(read=True, write=True, delete=True, list=True),
        expiry=datetime.now(UTC) + timedelta(hours=1),
    )
    return ContainerClient(pairs["BlobEndpoint"], _name(container), credential=signature)


@pytest.fixture
def served() -> Iterator[Account]:
    with blob_account(blobs={}) as served:
        yield served


def at_once(served: Account) -> AzureBlobs:
    """Connect without pauses between attempts."""
    retries = ExponentialRetry(0, 0, retry_total=2, random_jitter_range=0)
    container = ContainerClient.from_connection_string(served.connection, "c", retry_policy=retries)
    return AzureBlobs(served.clients.enter_context(container))


USES: dict[str, Callable[[AzureBlobs, Path], object]] = {
    "read": lambda blobs, _: blobs.read("raw/a"),
    "write": lambda blobs, _: blobs.write("raw/a", b"1"),
    "create": lambda blobs, _: blobs.create("raw/a", b"1"),
    "replace": lambda blobs, _: blobs.replace("raw/a", b"1", "0x1"),
    "list": lambda blobs, _: [*blobs.list("raw/")],
    "delete": lambda blobs, _: blobs.delete("raw/"),
    "fetch": lambda blobs, folder: blobs.fetch("raw/", folder),
}
CODES: dict[str, tuple[int, type[ScoringError], str]] = {
    # https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes and
    # .../common-rest-api-error-codes give code and status.
    "ContainerBeingDeleted": (409, Transient, "'c' is being deleted"),
    "ContainerDisabled": (409, StorageUnusable, "'c' was disabled by an administrator"),
    "AccountBeingCreated": (409, Transient, "still being created"),
    "AccountIsDisabled": (403, StorageUnusable, "account is disabled"),
    "BlobArchived": (409, StorageUnusable, "'raw/a?'.*archive tier.*set-tier"),
    "BlobBeingRehydrated": (409, Transient, "'raw/a?'.*out of the archive tier"),
    "BlobImmutableDueToPolicy": (409, StorageUnusable, "'raw/a?'.*immutability policy.*'c'"),
    "BlobImmutableDueToLegalHold": (409, StorageUnusable, "'raw/a?'.*legal hold.*'c'"),
    "LeaseIdMissing": (412, StorageUnusable, "lease of blob 'raw/a?'.*break it"),
    "AuthorizationPermissionMismatch": (403, Misconfigured, "denies access to 'raw/a?'"),
    "AuthenticationFailed": (403, Misconfigured, "denies access to 'raw/a?'"),
    "NoAuthenticationInformation": (401, Misconfigured, "denies access to 'raw/a?'"),
    "InvalidResourceName": (400, ScoringError, "refused 'raw/a?'"),
    "TooManyRequests": (429, Transient, "does not answer for 'raw/a?'"),
    "InternalError": (500, Transient, "does not answer for 'raw/a?'"),
    "ServerBusy": (503, Transient, "does not answer for 'raw/a?'"),
    "OperationTimedOut": (500, Transient, "does not answer for 'raw/a?'"),
    "CodeOfTomorrow": (409, ScoringError, "refused 'raw/a?'"),
}


@pytest.fixture(scope="class")
def collected() -> Iterator[None]:
    """Collect what the SDK left before another class of tests begins."""
    yield
    gc.collect()


# The SDK leaves answers that it streams and that say 5xx, or break off, with their connections.
@pytest.mark.usefixtures("collected")
@pytest.mark.filterwarnings("ignore:unclosed <socket.socket:ResourceWarning")
class TestCodes:
    """What the service answers is told apart by its code, at every call."""

    @pytest.mark.parametrize("use", USES)
    @pytest.mark.parametrize("code", CODES)
    def test_every_code_has_its_meaning_at_every_call(
        self, served: Account, tmp_path: Path, code: str, use: str
    ) -> None:
        served.put("raw/a", b"theirs")
        status, kind, text = CODES[code]
        served.refusals["/raw/a|comp=list"] = (status, code)

        with pytest.raises(ScoringError, match=text) as raised:
            USES[use](at_once(served), tmp_path)

        # Exactly: what is transient is tried again, and what is not must not be.
        assert type(raised.value) is kind

    @pytest.mark.parametrize(
        ("code", "kind"),
        [("ContainerBeingDeleted", Transient), ("ContainerDisabled", StorageUnusable)],
    )
    def test_a_container_that_cannot_be_created_says_why(
        self, code: str, kind: type[ScoringError]
    ) -> None:
        with blob_account(refused_creations=[(409, code)]) as served:
            blobs = at_once(served)

            with pytest.raises(kind, match="container 'c'"):
                blobs.create("a", b"1")
            blobs.create("a", b"1")

            assert blobs.read("a")[0] == b"1"

    def test_a_container_that_goes_again_and_again_is_given_up(self) -> None:
        with blob_account() as served:

            def vanish(asked: str) -> None:
                if asked.startswith("PUT") and "restype" not in asked:
                    served.blobs = None

            served.before = vanish
            with pytest.raises(NotFound, match="no container 'c'"):
                at_once(served).write("a", b"1")

            assert sum("restype" in asked for asked in served.requests) == azure_blobs._CREATIONS

    def test_a_blob_that_must_not_be_overwritten_may_be_the_one_that_is_created(
        self, served: Account
    ) -> None:
        served.put("raw/a", b"ours")
        served.refusals["PUT .*/raw/a"] = (409, "BlobImmutableDueToPolicy")
        blobs = at_once(served)

        assert blobs.create("raw/a", b"ours") == blobs.read("raw/a")[1]
        with pytest.raises(Conflict):
            blobs.create("raw/a", b"more")

    @pytest.mark.parametrize("use", ["read", "list", "fetch"])
    def test_an_answer_that_is_cut_off_is_transient(
        self, served: Account, tmp_path: Path, use: str
    ) -> None:
        served.put("raw/a", b"x" * 1000)
        served.truncate = 100

        with pytest.raises(Transient):
            USES[use](at_once(served), tmp_path)

    def test_a_list_of_many_pages_is_one_list(self, served: Account) -> None:
        for number in range(25):
            served.put(f"raw/{number:02}", b"1")
        served.page = 3

        assert names(at_once(served), "raw/1") == [f"raw/{n}" for n in range(10, 20)]
        at_once(served).delete("raw/")
        assert served.blobs == {}


class TestHierarchy:
    """An account with a hierarchical namespace, where a blob's name makes directories."""

    @pytest.fixture
    def served(self) -> Iterator[Account]:
        with blob_account(blobs={}, hierarchical=True, page=2) as served:
            for name in ("runs/r1/logs/a.txt", "runs/r1/logs/deep/b.txt", "runs/r1/c", "runs/r2/d"):
                served.put(name, name.encode())
            yield served

    def test_directories_are_not_listed(self, served: Account) -> None:
        blobs = at_once(served)

        assert names(blobs, "runs/r1/logs") == ["runs/r1/logs/a.txt", "runs/r1/logs/deep/b.txt"]
        assert names(blobs) == [
            *("runs/r1/c", "runs/r1/logs/a.txt", "runs/r1/logs/deep/b.txt", "runs/r2/d")
        ]

    def test_directories_become_no_files(self, served: Account, tmp_path: Path) -> None:
        at_once(served).fetch("runs/r1/", tmp_path)

        files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
        assert [path.relative_to(tmp_path).as_posix() for path in files] == [
            *("c", "logs/a.txt", "logs/deep/b.txt")
        ]

    def test_a_directory_is_no_blob_to_read(self, served: Account) -> None:
        with pytest.raises(NotFound, match="'runs/r1/logs': it is a directory"):
            at_once(served).read("runs/r1/logs")

    def test_logs_of_a_run_are_its_files(self, served: Account) -> None:
        logs = RunLogs(at_once(served))

        assert logs.names("r1") == ["a.txt", "deep/b.txt"]
        with pytest.raises(NotFound):
            logs.read("r1", "deep")

    def test_a_prefix_is_deleted_with_its_directories(self, served: Account) -> None:
        at_once(served).delete("runs/r1/")

        assert served.blobs
        assert sorted(served.blobs) == ["runs", "runs/r1", "runs/r2", "runs/r2/d"]

    def test_a_directory_that_somebody_writes_into_meanwhile_stays(self, served: Account) -> None:
        def write(asked: str) -> None:
            if asked.startswith("DELETE") and asked.endswith("/deep"):
                served.before = lambda _: None
                served.put("runs/r1/logs/deep/new", b"new")

        served.before = write
        blobs = at_once(served)
        blobs.delete("runs/r1/")

        assert names(blobs, "runs/r1/") == ["runs/r1/logs/deep/new"]

    def test_a_directory_that_the_blob_api_does_not_delete_at_all_is_left(
        self, served: Account
    ) -> None:
        # So https://github.com/Azure/azure-sdk-for-net/issues/39065 saw it answer.
        served.refusals["DELETE .*/(logs|deep)$"] = (400, "OperationNotSupportedOnDirectory")
        blobs = at_once(served)

        blobs.delete("runs/r1/")

        assert names(blobs, "runs/r1/") == []

    def test_snapshots_go_with_their_blob(self, served: Account) -> None:
        served.put("raw/a", b"1", snapshots=2)

        at_once(served).delete("raw/")

        assert served.blobs
        assert not any(name.startswith("raw/") for name in served.blobs)
