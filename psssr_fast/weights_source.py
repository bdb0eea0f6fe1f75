"""From what the user calls a model to a path: an embedded model, a local path, a repository."""

import os
import re
from pathlib import Path
from typing import cast

from psssr_fast.errors import ModelError, UsageError, lacks_memory
from psssr_fast.weights_files import PICKLE_SUFFIXES, is_file, shown

EMBEDDED = {"nano": Path(__file__).parent / "weights" / "nano.safetensors"}

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_KNOWN = "known are: nano (embedded), a directory of weights, a Hugging Face repository owner/name"


def find_source(source: str | Path, *, offline: bool = False, revision: str | None = None) -> Path:
    """The file or directory that ``source`` means, downloaded first if it is a repository.

    Args:
        source: the name of an embedded model, a local path (which wins over a repository of the
            same spelling), or ``owner/name`` on Hugging Face.
        offline: use only what an earlier download left in the cache. ``HF_HUB_OFFLINE=1`` in the
            environment does the same.
        revision: branch, tag or commit of a repository.

    Raises:
        ModelError: nothing is there, or it cannot be downloaded.
        UsageError: a revision of something that is not a repository.
    """
    name = str(source)
    local = EMBEDDED[name] if name in EMBEDDED else _local_path(name)
    if name in EMBEDDED and not is_file(local):
        raise ModelError(f"the embedded model {name} is not in this installation; reinstall it")
    missing = _why_missing(local) if name else "the name is empty"
    is_repository = (
        _REPOSITORY.fullmatch(name) is not None
        and Path(name).suffix not in (".safetensors", *PICKLE_SUFFIXES)
        and missing is not None
    )
    if is_repository:
        return _download(name, offline=offline, revision=revision)
    if missing is not None:
        raise ModelError(f"no model {shown(name)!r}: {missing}; {_KNOWN}")
    if revision is not None:
        raise UsageError(f"revision={revision!r} needs a repository owner/name; got {shown(name)}")
    return local


def _local_path(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError as error:  # "~" and the name of a user whom the system does not know
        raise ModelError(f"no model {shown(name)!r}: {shown(error)}; {_KNOWN}") from None


def _why_missing(path: Path) -> str | None:
    """Why there is no file or directory that can be looked at; ``None`` if there is one."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return "no such file or directory"
    except OSError as error:
        if lacks_memory(error):
            raise
        return (error.strerror or type(error).__name__).lower()
    except ValueError as error:  # NUL, or what the system cannot write as a name
        return shown(error)
    return None


def _download(repository: str, *, offline: bool, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    # The bases of the library's own error are the errors of the HTTP client below it, which get
    # through while a file is on its way.
    transport = cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)
    failures = (OSError, ValueError, RuntimeError, EntryNotFoundError, *transport)
    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            local_files_only=offline,
            allow_patterns=["*.safetensors", "*.json"],
            ignore_patterns=["text_encoder/*", "image_encoder/*"],  # 11 GB that nobody reads
        )
    except cast("tuple[type[Exception], ...]", failures) as error:
        if lacks_memory(error):
            raise
        raise ModelError(_failure(error, repository, revision)) from None
    return Path(folder)


def _failure(error: Exception, repository: str, revision: str | None) -> str:
    """What went wrong with a download, and what to do."""
    from huggingface_hub import errors

    if isinstance(error, errors.RepositoryNotFoundError):  # the Hub answers the same to both
        return (
            f"no model {repository!r}: no such directory, and no such Hugging Face repository;"
            " check the name; if it is private or gated, log in with: hf auth login"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository} has no revision {shown(revision)!r}"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"no model {repository!r}: no such directory, and not in the Hugging Face cache;"
            " connect to the network and run without --offline once, or give a directory"
        )
    first_line = str(error).strip().split("\n")[0] or type(error).__name__
    return f"{repository} cannot be downloaded: {shown(first_line)}"
