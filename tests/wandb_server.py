"""A stand-in for a W&B server, which cannot be had as a package: it speaks as much of its protocol as the real
client (wandb 0.31) needs to record runs, and keeps the history that it was sent."""

import gzip
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class WandbServer(http.server.ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.history: dict[str, list[dict[str, Any]]] = {}
        """Lines that were logged, by run id."""

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Answer a GraphQL operation."""
        entity = {"id": "e", "name": "me"}
        if operation == "Viewer":
            words = {"id": "u", "entity": "me", "username": "me", "email": "", "flags": "{}"}
            return {"viewer": {**words, "teams": {"edges": []}}}
        if operation == "RunResumeStatus":
            name = variables["name"]
            bucket = self._bucket(name) if name in self.history else None
            return {"model": {"id": "p", "name": variables["project"], "entity": entity, "bucket": bucket}}
        if operation == "UpsertBucket":
            inserted = variables["name"] not in self.history
            self.history.setdefault(variables["name"], [])
            project = {"id": "p", "name": variables["project"], "entity": entity}
            bucket = {**self._bucket(variables["name"]), "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
        return {}

    def _bucket(self, name: str) -> dict[str, Any]:
        count = len(self.history[name])
        counts = {"historyLineCount": count, "logLineCount": 0, "eventsLineCount": 0}
        tails = {"historyTail": json.dumps([json.dumps(line) for line in self.history[name][-1:]]), "eventsTail": "[]"}
        words = {"summaryMetrics": "{}", "config": "{}", "wandbConfig": "{}", "tags": []}
        return {"id": name, "name": name, "displayName": name, **counts, **tails, **words}

    def keep(self, run: str, files: dict[str, Any]) -> None:
        """Keep what a client streams: the history begins at the offset that it names."""
        if "wandb-history.jsonl" in files:
            sent = files["wandb-history.jsonl"]
            lines = self.history.setdefault(run, [])
            lines[sent["offset"] :] = [json.loads(line) for line in sent["content"]]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: WandbServer

    def do_GET(self) -> None:
        self._answer({})

    def do_PUT(self) -> None:
        self._read()
        self._answer({})

    def do_POST(self) -> None:
        body = self._read()
        if self.path == "/graphql":
            asked = json.loads(body)
            self._answer({"data": self.server.answer(asked["operationName"], asked.get("variables") or {})})
            return
        if self.path.endswith("/file_stream"):
            self.server.keep(self.path.split("/")[-2], json.loads(body).get("files", {}))
        self._answer({})

    def _read(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words: object) -> None:
        pass


@contextmanager
def serve() -> Iterator[WandbServer]:
    with WandbServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
