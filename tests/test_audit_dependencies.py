"""The audit of dependencies: what it calls a license, what it follows, and what it does without its service."""

from __future__ import annotations

import http.server
import importlib.util
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "audit_dependencies.py"


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit_dependencies", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Service(http.server.BaseHTTPRequestHandler):
    """OSV in small: the package ``safetensors`` has one known vulnerability."""

    asked: ClassVar[list[dict]] = []

    def do_POST(self):
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(query)
        name = query["package"]["name"]
        affected = {
            "package": {"name": name, "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.1"}]}],
        }
        known = {"id": "PYSEC-2026-1", "summary": "s", "details": "d", "affected": [affected]}
        body = json.dumps({"vulns": [known]} if name == "safetensors" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def service() -> Iterator[str]:
    Service.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/query"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("license", "kind"),
    [
        ("Apache-2.0", "permissive"),
        ("BSD License; Apache Software License", "permissive"),
        ("MPL-2.0 AND MIT", "weak copyleft"),
        ("GPL-3.0-only OR MIT", "permissive"),
        ("GNU Lesser General Public License v2 or later (LGPLv2+)", "weak copyleft"),
        ("GNU General Public License v3 (GPLv3)", "strong copyleft"),
        ("GPL-3.0, for Apache licensed programs", "strong copyleft"),
        ("LicenseRef-NVIDIA-Proprietary", "proprietary"),
        ("Free for non-commercial use, BSD otherwise", "proprietary"),
        ("As you like", "unknown"),
        ("", "unstated"),
    ],
)
def test_licenses_are_of_a_kind(audit, license, kind):
    package = audit.Package(name="some", version="1", needed_by="us", license=license)
    assert package.kind == kind
    assert package.flagged == (kind not in {"permissive", "weak copyleft"})


def test_what_a_person_has_reviewed_is_not_flagged(audit):
    package = audit.Package(name="nvidia-cublas", version="1", needed_by="torch", license="Proprietary")
    assert package.kind == "proprietary"
    assert not package.flagged


def test_dependencies_of_dependencies_and_of_their_extras_are_followed(audit):
    packages, missing = audit.needed(["open_clip_torch", "no-such-package-anywhere"], "us")
    by = {package.name: package.needed_by for package in packages}
    assert by["open-clip-torch"] == "us"
    assert by["timm"] == "open-clip-torch"
    assert "torch" in by
    assert "pytest" not in by  # an extra of somebody's, which nobody asks for
    assert missing == ["no-such-package-anywhere"]


def test_the_dependencies_of_the_project_have_licenses_that_it_may_use(audit, capsys):
    assert audit.main(["--only", "licenses"]) == 0
    printed = capsys.readouterr().out
    assert "FLAGGED" not in printed
    assert "transformers" in printed


def test_known_vulnerabilities_are_flagged(audit, service, monkeypatch, capsys):
    monkeypatch.setattr(audit, "project_requirements", lambda extras: ["safetensors", "filelock"])
    assert audit.main(["--only", "vulnerabilities", "--service", service]) == 1
    told = capsys.readouterr().out
    assert "PYSEC-2026-1" in told
    assert "mended in: 99.1" in told
    assert "known vulnerabilities" in told
    assert {"safetensors", "filelock"} <= {query["package"]["name"] for query in Service.asked}
    monkeypatch.setattr(audit, "project_requirements", lambda extras: ["filelock"])
    assert audit.main(["--only", "vulnerabilities", "--service", service]) == 0
