"""``clips-bench publish DIR --repo_id ORG/NAME``: push an encoder, a LLaVA or results to the Hugging Face Hub."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.publishing.upload_files import (
    UploadPlan,
    check_no_local_paths,
    check_no_secrets,
    is_text_file,
    plan_upload,
    shorten_local_paths,
)
from benchmarks.results.formatting import strip_control_chars
from clips.core.artifact import log_info
from clips.errors import UserError, error_reason

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_TOKEN = re.compile(r"hf_\w+")


@dataclass(frozen=True, kw_only=True)
class PublishConfig:
    """Push a finished encoder, LLaVA, study or directory of results to the Hugging Face Hub.

    The token comes from ``HF_TOKEN`` or `hf auth login`; it is never written to disk. The upload has shortened paths
    in manifests, configs and results; the local files do not change.

    Args:
        directory: the directory to push.
        repo_id: the repository, ``ORG/NAME``: a model repository, or a dataset repository for results and studies. It
            is created if missing.
        private: visibility of a new repository.
        include_images: for results, also push the items tables and the page, which show the benchmarks' own images.
        commit_message: the commit message.
        dry_run: only list the files, with sizes and licenses; it sends nothing and needs no network.
    """

    directory: str
    repo_id: str
    private: bool = True
    include_images: bool = False
    commit_message: str = "Pushed by clips-bench publish"
    dry_run: bool = False

    def __post_init__(self) -> None:
        if not _REPO_ID.fullmatch(self.repo_id):
            raise UserError(f"repo_id: expected ORG/NAME, got '{self.repo_id}'")


def run_publish(config: PublishConfig) -> None:
    """List the files, then push them in one commit.

    Raises:
        UserError: an incomplete or changed directory, foreign files, a secret, a public repository although
            ``private`` is set, or the Hub rejects the upload.
    """
    plan = plan_upload(Path(config.directory), include_images=config.include_images)
    for name, path in plan.files.items():
        check_no_secrets(name, path)
        if name not in plan.records:
            check_no_local_paths(name, path)
    with tempfile.TemporaryDirectory(prefix="clips-publish-") as staging:
        shortened = stage_files(plan, Path(staging))
        _print_plan(config, plan, shortened)
        if not config.dry_run:
            _push(config, plan, Path(staging))


def stage_files(plan: UploadPlan, staging: Path) -> dict[str, int]:
    """Build the upload directory: symlinks to the files, and records with shortened paths.

    Returns:
        name of a record → number of shortened paths.
    """
    shortened: dict[str, int] = {}
    for name, path in plan.files.items():
        target = staging / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name in plan.records and is_text_file(path):
            text, count = shorten_local_paths(path.read_text(encoding="utf-8"))
            target.write_text(text, encoding="utf-8")
            shortened |= {name: count} if count else {}
        else:
            target.symlink_to(path.resolve())
    return shortened


def _print_plan(config: PublishConfig, plan: UploadPlan, shortened: dict[str, int]) -> None:
    sizes = {name: path.stat().st_size for name, path in plan.files.items()}
    visibility = "private" if config.private else "public"
    lines = [f"{config.directory} → {config.repo_id} ({plan.repo_type}s, {visibility})"]
    for name, size in sizes.items():
        paths = f"  ({shortened[name]} local paths shortened)" if name in shortened else ""
        lines.append(f"  {_size(size):>10}  {name}{paths}")
    lines.append(f"  {_size(sum(sizes.values())):>10}  in {len(sizes)} files")
    lines += [f"skipped: {', '.join(plan.left_out)}"] if plan.left_out else []
    lines.append(f"license: {plan.license}")
    lines += [f"made from {name}: license {license}" for name, license in plan.parents.items()]
    if "README.md" not in plan.files and plan.repo_type == "model":
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


def _push(config: PublishConfig, plan: UploadPlan, staging: Path) -> None:
    from huggingface_hub import HfApi

    api, repo_id, repo_type = HfApi(), config.repo_id, plan.repo_type
    try:
        _check_visibility(api, config, repo_type)
        api.create_repo(repo_id, repo_type=repo_type, private=config.private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, repo_type=repo_type, folder_path=staging, commit_message=config.commit_message
        )
    except UserError:
        raise
    except Exception as error:  # of the Hub, the network or the file system
        reason = _TOKEN.sub("hf_…", error_reason(error))
        raise UserError(f"repo_id: {config.repo_id}: the Hub rejects it ({reason})") from None
    log_info(f"published: {commit.commit_url}")


def _check_visibility(api: HfApi, config: PublishConfig, repo_type: str) -> None:
    """Reject an existing public repository if ``private`` is set."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        existing = api.repo_info(config.repo_id, repo_type=repo_type)
    except RepositoryNotFoundError:
        return
    if config.private and not existing.private:
        raise UserError(f"repo_id: {config.repo_id} is public already; pass --private false to push there")
