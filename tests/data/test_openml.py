"""openml:ID through scikit-learn, from a small server on loopback that answers as openml.org does."""

import gzip
import json
from collections.abc import Iterator
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.request import Request, urlopen

import pytest
from sklearn.datasets import _openml

from tuner.data import Schema, load_table
from tuner.errors import DataError
from tuner.spec import DataSection

ARFF = """@relation pets
@attribute weight numeric
@attribute kind {cat,dog}
@attribute indoors {true,false}
@attribute room {1,2,3}
@attribute class {old,young}
@data
4.5,cat,true,3,old
?,dog,false,1,young
30,dog,?,3,old
3.25,cat,true,?,young
"""
KINDS = {"weight": "numeric", "kind": "nominal", "indoors": "nominal", "room": "nominal", "class": "nominal"}


def answers(data_id: int) -> dict[str, Any]:
    """What the server says, by path."""
    description = {
        "id": str(data_id),
        "name": "pets",
        "description": "four pets",
        "version": "1",
        "format": "ARFF",
        "file_id": "77",
        "url": "https://www.openml.org/data/v1/download/77/pets.arff",
        "default_target_attribute": "class",
        "status": "active",
        "processing_date": "2024-01-01",
        "md5_checksum": md5(ARFF.encode()).hexdigest(),
    }
    features = [
        {
            "index": str(i),
            "name": name,
            "data_type": kind,
            "is_target": str(name == "class").lower(),
            "is_ignore": "false",
            "is_row_identifier": "false",
            "number_of_missing_values": str(int(name != "class")),
        }
        for i, (name, kind) in enumerate(KINDS.items())
    ]
    return {
        f"/api/v1/json/data/{data_id}": {"data_set_description": description},
        f"/api/v1/json/data/features/{data_id}": {"data_features": {"feature": features}},
        f"/api/v1/json/data/qualities/{data_id}": {"data_qualities": {"quality": []}},
        "/data/v1/download/77/pets.arff": ARFF,
    }


@pytest.fixture
def openml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[int]:
    """The number of a data set that the server has; nothing else is there."""
    known = answers(31)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = known.get(self.path)
            body = found if isinstance(found, str) else json.dumps(found)
            self.send_response(200 if found is not None else 412)
            self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            self.wfile.write(gzip.compress(body.encode()))

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        here = f"http://127.0.0.1:{server.server_address[1]}/"

        def open_here(request: Request, *arguments: Any, **more: Any) -> Any:
            there = request.full_url
            assert there.startswith("https://www.openml.org/")
            request.full_url = there.replace("https://www.openml.org/", here)
            return urlopen(request, *arguments, **more)

        monkeypatch.setattr(_openml, "urlopen", open_here)
        monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "cache"))
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield 31
        finally:
            server.shutdown()


def test_a_table_of_openml(openml: int) -> None:
    table = load_table(DataSection(source=f"openml:{openml}"), "classification", Path())
    assert table.target_name == "class"
    assert table.classes == ("old", "young")
    assert table.target.tolist() == [0, 1, 0, 1]
    assert table.frame.to_dict(as_series=False) == {
        "weight": [4.5, None, 30.0, 3.25],
        "kind": ["cat", "dog", "dog", "cat"],
        "indoors": ["true", "false", None, "true"],
        "room": ["3", "1", "3", None],
    }
    assert Schema.infer(table.frame).of_kind("category") == ["kind", "indoors", "room"]


def test_another_target(openml: int) -> None:
    table = load_table(DataSection(source=f"openml:{openml}", target="kind"), "classification", Path())
    assert table.classes == ("cat", "dog")
    assert "class" in table.frame.columns


def test_no_such_data_set(openml: int) -> None:
    with pytest.raises(DataError, match=rf"openml:{openml + 1}: cannot be had from openml.org \("):
        load_table(DataSection(source=f"openml:{openml + 1}"), "classification", Path())
