"""``clips-bench publish DIR --repo_id ORG/NAME``: an encoder, a LLaVA or results on the Hugging Face hub."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.publishing.redaction import (
    check_no_local_paths,
    check_no_secrets,
    is_text_file,
    shorten_local_paths,
)
from benchmarks.publishing.upload_files import UploadPlan, plan_upload
from benchmarks.results.formatting import strip_control_chars
from clips.core.artifact import log_info
from clips.errors import UserError, error_reason

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_TOKEN = re.compile(r"hf_\w+")


@dataclass(frozen=True, kw_only=True)
class PublishConfig:
    """Push a finished encoder, LLaVA, study or directory of results to the Hugging Face hub.

    The token is that of ``HF_TOKEN`` or of `hf auth login`; it is written nowhere. Absolute paths in manifests, configs
    and results are shortened in what is sent; the files here stay as they are.

    Args:
        directory: what to push.
        repo_id: the repository, ``ORG/NAME``: of models, for results and studies of data sets. It is made where
            missing.
        private: who may see it where it is made.
        include_images: of results, also push the items tables and the page, which show the benchmarks' own pictures.
        commit_message: of the commit.
        dry_run: only list what would go, with sizes and licenses; nothing is sent and no network needed.
    """

    directory: str
    repo_id: str
    private: bool = True
    include_images: bool = False
    commit_message: str = "Pushed by clips-bench publish"
    dry_run: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.repo_id):
            raise UserError(f"repo_id: expected ORG/NAME, got '{self.repo_id}'")


def run_publish(config: PublishConfig) -> None:
    """List what goes, then push it in one commit.

    Raises:
        UserError: an unfinished or changed directory, foreign files, a secret, a repository that is public where a
            private one is asked for, or the hub refuses.
    """
    directory = Path(config.directory)
    found = plan_upload(directory, pictures=config.include_images)
    for name, path in found.files.items():
        check_no_secrets(name, path)
        if name not in found.records:
            check_no_local_paths(name, path)
    with tempfile.TemporaryDirectory(prefix="clips-publish-") as staging:
        shortened = stage_files(found, Path(staging))
        _tell(config, found, shortened)
        if not config.dry_run:
            _push(config, found, Path(staging))


def stage_files(found: UploadPlan, staging: Path) -> dict[str, int]:
    """Lay out what goes: links to the files, and records reworded. Returns how many paths were shortened in which."""
    shortened: dict[str, int] = {}
    for name, path in found.files.items():
        target = staging / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name in found.records and is_text_file(path):
            text, count = shorten_local_paths(path.read_text(encoding="utf-8"))
            target.write_text(text, encoding="utf-8")
            shortened |= {name: count} if count else {}
        else:
            target.symlink_to(path.resolve())
    return shortened


def _tell(config: PublishConfig, found: UploadPlan, shortened: dict[str, int]) -> None:
    """What goes, to standard output."""
    sizes = {name: path.stat().st_size for name, path in found.files.items()}
    kind = {"model": "models", "dataset": "data sets"}[found.repo_type]
    lines = [f"{config.directory} → {config.repo_id} ({kind}, {'private' if config.private else 'public'})"]
    for name, size in sizes.items():
        paths = f"  ({shortened[name]} paths of this machine shortened)" if name in shortened else ""
        lines.append(f"  {_size(size):>10}  {name}{paths}")
    lines.append(f"  {_size(sum(sizes.values())):>10}  in {len(sizes)} files")
    lines += [f"left out: {', '.join(found.left_out)}"] if found.left_out else []
    lines.append(f"license: {found.license}")
    lines += [f"made from {name}: license {license}" for name, license in found.parents.items()]
    if "README.md" not in found.files and found.repo_type == "model":
        lines.append("no README.md: `clips-bench card` writes one")
    for line in lines:
        print(strip_control_chars(line))


def _size(count: int) -> str:
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB"):  # noqa: B007 - the last one is used below
        if value < 1000:
            break
        value /= 1000
    return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"


def _push(config: PublishConfig, found: UploadPlan, staging: Path) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        _refuse_public(api, config, found.repo_type)
        api.create_repo(config.repo_id, repo_type=found.repo_type, private=config.private, exist_ok=True)
        done = api.upload_folder(
            repo_id=config.repo_id, repo_type=found.repo_type, folder_path=staging, commit_message=config.commit_message
        )
    except UserError:
        raise
    except Exception as error:  # the hub's, the network's and the file system's own
        reason = _TOKEN.sub("hf_…", error_reason(error))
        raise UserError(f"repo_id: {config.repo_id}: the Hub rejects it ({reason})") from None
    log_info(f"published: {done.commit_url}")


def _refuse_public(api: HfApi, config: PublishConfig, repo_type: str) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        there = api.repo_info(config.repo_id, repo_type=repo_type)
    except RepositoryNotFoundError:
        return
    if config.private and not there.private:
        raise UserError(f"repo_id: {config.repo_id} is public already; say --private false to push there")
