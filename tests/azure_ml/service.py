"""The hosts of the cloud: who answers which, and to whom."""

import re

from tests.azure_ml.answers import Answer, ServiceError
from tests.azure_ml.history import LOG_HOST, History
from tests.azure_ml.identity import API_HOST, ARM, ARM_HOST, AZURE_ML, Tokens
from tests.azure_ml.storage import Storage
from tests.azure_ml.workspace import WORKSPACE, Call, Workspace, unknown

_HISTORY = re.compile(f"/history/v1.0{re.escape(WORKSPACE)}/runs/([^/]+)(/details|/children|)")
_STORAGE = "https://storage.azure.com"


class Service:
    """The resource manager, the workspace's own API, its storage, and the identity's endpoint."""

    def __init__(self, storage: Storage, tokens: Tokens) -> None:
        self.storage = storage
        self.tokens = tokens
        self.workspace = Workspace(storage, tokens)
        self.history = History(self.workspace.jobs)

    def answer(self, call: Call) -> Answer:
        """Answer a request."""
        try:
            return self._answer(call)
        except ServiceError as error:
            return error.answer()

    def _answer(self, call: Call) -> Answer:
        if call.host == ARM_HOST:
            self.tokens.check(call.headers, ARM, "https://management.core.windows.net")
            return self.workspace.answer(call)
        if call.host == API_HOST:
            return self._api(call)
        if call.host == LOG_HOST and call.method in {"GET", "HEAD"}:
            with self.workspace.lock:
                return self.history.log(call.path, call.query, call.headers.get("range", ""))
        if call.host == self.storage.host:
            return self._blobs(call)
        if call.host == "" and call.path == "/msi/token" and call.method == "GET":
            return self.tokens.endpoint(call.query, call.headers)
        raise unknown(call)

    def _api(self, call: Call) -> Answer:
        if call.path == "/discovery" and call.method == "GET":
            names = ("api", "catalog", "experimentation", "gallery", "history", "modelmanagement")
            return Answer(body=dict.fromkeys(names, f"https://{API_HOST}"))
        self.tokens.check(call.headers, ARM, AZURE_ML)
        match = _HISTORY.fullmatch(call.path)
        if match and call.method == "GET":
            with self.workspace.lock:
                return self.history.answer(match[1], match[2])
        raise unknown(call)

    def _blobs(self, call: Call) -> Answer:
        target, headers = call.target, dict(call.headers)
        if headers.get("authorization", "").startswith("Bearer "):
            # Azurite takes no tokens over plain HTTP; who has a good one gets a signature for it.
            self.tokens.check(headers, _STORAGE)
            del headers["authorization"]
            target += ("&" if "?" in target else "?") + self.storage.account_sas()
        return self.storage.forward(call.method, target, headers, call.content)
