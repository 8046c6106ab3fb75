"""Passwords and keys: not in errors, not in logs, not in what Python shows of the settings."""

import logging

import pytest

from scoring import addresses
from scoring.adapters.telemetry import FactsFormatter
from scoring.errors import Misconfigured, ScoringError, Transient, cause_of
from scoring.settings import Settings

DATABASES = {
    "postgresql://me:p4ss:w0rd@host:5432/db": "p4ss:w0rd",
    "postgresql://me:p4ss%40w0rd@host/db": "p4ss@w0rd",
    "postgresql://host/db?user=me&password=qu3ry%2Fsecret": "qu3ry/secret",
    "Driver={ODBC Driver 18 for SQL Server};Server=s;UID=me;PWD={br4ce;d}": "br4ce;d",
    "Driver=x;Server=s;UID=me;Password=pl4inly": "pl4inly",
}


@pytest.mark.parametrize(("text", "secret"), DATABASES.items())
def test_what_a_driver_quotes_of_a_password_is_not_shown(text: str, secret: str) -> None:
    settings = Settings.load({"SCORING_DATABASE": text})

    error = Transient(f"the database is not reachable: login of {secret!r} failed for {text}")

    for shown in (str(error), cause_of(error), f"{error}", repr(settings)):
        assert secret not in shown
        assert text not in shown


@pytest.mark.parametrize(
    ("name", "text", "secret"),
    [
        ("STORAGE", "AccountName=a;AccountKey=c2VjcmV0a2V5;EndpointSuffix=x", "c2VjcmV0a2V5"),
        ("STORAGE", "BlobEndpoint=https://a;SharedAccessSignature=sv=1&sig=abcdef", "abcdef"),
        (
            "EVENT_HUB_CONNECTION",
            "Endpoint=sb://n.servicebus.windows.net/;SharedAccessKeyName=n;SharedAccessKey=a2V5a2V5",
            "a2V5a2V5",
        ),
    ],
)
def test_keys_are_not_shown_either(name: str, text: str, secret: str) -> None:
    settings = Settings.load({f"SCORING_{name}": text})
    record = logging.makeLogRecord(
        {"name": "scoring.x", "msg": "failed", "cause": cause_of(ScoringError(f"no: {text}"))}
    )

    assert secret not in repr(settings)
    assert secret not in FactsFormatter().format(record)


def test_a_password_with_an_at_sign_is_refused_before_anything_takes_half_of_it_for_a_host() -> (
    None
):
    text = "postgresql://u:S3cretA@B@host/db"

    with pytest.raises(Misconfigured, match="@ is written as %40") as refused:
        Settings.load({"SCORING_DATABASE": text})

    assert "S3cret" not in str(refused.value)
    assert "S3cretA@B" in addresses.secrets_of(text)


def test_a_short_text_is_no_secret_that_is_looked_for() -> None:
    Settings.load({"SCORING_DATABASE": "postgresql://me:a@host/db"})

    assert str(ScoringError("a cat")) == "a cat"
