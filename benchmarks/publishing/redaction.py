"""Redaction before publishing: secrets, and local paths."""

from __future__ import annotations

import re
from pathlib import Path

from clips.errors import UserError

_TEXT = {".json", ".jsonl", ".yaml", ".yml", ".md", ".txt", ".csv", ".tex", ".jinja", ".html", ".svg"}
_MAX_BYTES = 32 * 2**20  # larger files are data
SECRET_PATTERNS: dict[str, re.Pattern[str]] = {
    "a token of the Hugging Face hub": re.compile(r"\bhf_[A-Za-z0-9]{30,}\b"),
    "an OpenAI-style key": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}\b"),
    "an AWS access key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "an AWS secret key": re.compile(r"(?i)aws_secret_access_key\W{1,5}[A-Za-z0-9/+]{40}"),
    "a GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{40,})"),
    "a Google key": re.compile(r"\bAIza[0-9A-Za-z_-]{35}\b"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a password in a URL": re.compile(r"[a-z][a-z0-9+.-]*://[^\s/@:\"']+:[^\s/@\"']+@"),
    "a named secret": re.compile(
        r"(?i)\b(?:hf_token|wandb_api_key|openai_api_key|api_key|password)\b[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9_./+-]{8,}"
    ),
}
_PATH = re.compile(
    r"(?<![\w.:/~…<])~?(?:/[\w@+.=,%-]+){2,}/?|(?<=file:)//+[\w@+.=,/%-]+|\b[A-Za-z]:(?:\\+[\w@+.=, -]+){2,}"
)
_IS_PATH = re.compile(r"(?:~|[A-Za-z]:)?[/\\][\w@+.=,%-]+[/\\]\S*")
_NAMES = re.compile(r'"(?:_name_or_path|name_or_path|model_path)"\s*:\s*"([^"]*)"')


def is_text_file(path: Path) -> bool:
    """Whether a file is text, and is searched for secrets and paths."""
    return path.suffix in _TEXT and path.stat().st_size <= _MAX_BYTES


def check_no_secrets(name: str, path: Path) -> None:
    """Search one file for secrets.

    Raises:
        UserError: there is one; the message names the file, the line and the type, never the secret.
    """
    if not is_text_file(path):
        return
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        for secret, pattern in SECRET_PATTERNS.items():
            if pattern.search(line):
                raise UserError(f"{name}: line {number} contains {secret}; remove it (and revoke it) first")


def check_no_local_paths(name: str, path: Path) -> None:
    """Check a model's file for local directories; it cannot be rewritten, since its hash is in the manifest.

    Raises:
        UserError: it names a local directory.
    """
    if path.suffix != ".json" or not is_text_file(path):
        return
    for found in _NAMES.findall(path.read_text(encoding="utf-8", errors="replace")):
        if _IS_PATH.fullmatch(found):
            raise UserError(f"{name}: names the local directory {found}; remove that entry first")


def shorten_local_paths(text: str) -> tuple[str, int]:
    """A record's text with absolute paths reduced to their last parts, and the number of shortened paths."""
    return _PATH.subn(lambda found: "…/" + re.split(r"[/\\]+", found[0].rstrip("/\\"))[-1], text)
