"""Blobs in a container, on Azurite: the same promises as a folder's."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.storage.blob import ContainerClient

from scoring.adapters.azure_blobs import AzureBlobs
from scoring.errors import Misconfigured, NotFound, Transient
from scoring.ports import Blobs
from tests.servers import azurite, azurite_program, free_port


@pytest.fixture(scope="module")
def account() -> Iterator[str]:
    if azurite_program() is None:
        pytest.skip("Azurite is not installed")
    with azurite() as connection_string:
        yield connection_string


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


def test_a_container_that_is_there_is_used(account: str) -> None:
    AzureBlobs.connect(account, "shared").write("a", b"1")

    assert AzureBlobs.connect(account, "shared").read("a")[0] == b"1"


def test_an_account_that_does_not_answer_is_transient(account: str) -> None:
    nobody = account.rpartition(":")[0] + f":{free_port()}/devstoreaccount1"
    container = ContainerClient.from_connection_string(nobody, "nobody", retry_total=0)

    with pytest.raises(Transient, match="does not answer"):
        AzureBlobs(container)


def test_another_key_is_refused_as_a_setting(account: str) -> None:
    wrong = account.replace("Eby8vdM0", "AAAAAAAA")

    with pytest.raises(Misconfigured, match="denies access"):
        AzureBlobs.connect(wrong, "denied")


def test_a_text_that_is_no_connection_string_is_refused_as_a_setting() -> None:
    with pytest.raises(Misconfigured, match="neither a URL nor a connection string"):
        AzureBlobs.connect("nonsense", "c")
