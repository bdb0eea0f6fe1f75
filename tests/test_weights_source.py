"""What the user calls a model: a name, a path, a repository. No test reaches the network."""

import json
import shutil
import socket
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub import errors as hub_errors

from psssr_fast.checkpoint import load_checkpoint
from psssr_fast.errors import ModelError, UsageError
from psssr_fast.weights_source import EMBEDDED, find_source

GOLDEN = Path(__file__).parent / "golden"
PARTS = ("foundation_dit", "base_lora", "draft", "vae")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Count the sockets that anything opens."""
    opened: list[object] = []

    def connect(self: socket.socket, address: object) -> NoReturn:
        opened.append(address)
        raise ConnectionRefusedError("no network in tests")

    def resolve(host: object, *args: object, **kwargs: object) -> NoReturn:
        opened.append(host)
        raise socket.gaierror("no network in tests")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return opened


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def fill(cache: Path, repository: str) -> None:
    """What a download of a complete model leaves in the cache."""
    home = cache / f"models--{repository.replace('/', '--')}"
    commit = "0123456789" * 4
    snapshot = home / "snapshots" / commit
    for folder in (snapshot, home / "refs", home / "blobs"):
        folder.mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    for name in PARTS:
        shutil.copyfile(GOLDEN / f"{name}.safetensors", home / "blobs" / name)
        (snapshot / f"{name}.safetensors").symlink_to(f"../../blobs/{name}")
    (snapshot / "config.json").write_text(json.dumps({"num_heads": 2}))


@pytest.mark.parametrize(
    "source",
    [
        "missing",
        "./missing",
        "../missing/model",
        "a/b/c",
        "/no/such/place",
        "a\nb",
        "x/y.safetensors",
    ],
)
def test_a_source_that_is_nowhere_says_what_is_known(source, no_network):
    with pytest.raises(
        ModelError, match=r"known are: nano .*, a directory.*, .* owner/name$"
    ) as raised:
        find_source(source)
    assert str(raised.value).isprintable() and raised.value.exit_code == 4
    assert no_network == []


def test_the_embedded_model_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setitem(EMBEDDED, "nano", tmp_path / "nano.safetensors")
    with pytest.raises(ModelError, match=r"nano is not in this installation; reinstall"):
        find_source("nano")
    (tmp_path / "nano.safetensors").write_bytes(b"")
    assert find_source("nano") == tmp_path / "nano.safetensors"


def test_a_local_directory_wins_over_a_repository(tmp_path, monkeypatch, no_network):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_source("owner/name") == Path("owner/name")
    assert no_network == []


@pytest.mark.parametrize("source", ["nano", "."])
def test_a_revision_needs_a_repository(source, tmp_path, monkeypatch):
    monkeypatch.setitem(EMBEDDED, "nano", Path(__file__))
    with pytest.raises(UsageError, match="revision='v2' needs a repository"):
        find_source(source, revision="v2")


def test_only_safetensors_and_json_are_downloaded(tmp_path, monkeypatch):
    asked: dict[str, Any] = {}

    def download(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_source("owner/name", offline=True, revision="v2") == tmp_path
    assert asked["repository"] == "owner/name" and asked["revision"] == "v2"
    assert asked["local_files_only"] is True
    assert asked["allow_patterns"] == ["*.safetensors", "*.json"]


def test_offline_loads_from_the_cache_without_a_socket(cache, no_network):
    fill(cache, "owner/name")
    checkpoint = load_checkpoint("owner/name", offline=True)
    assert checkpoint.size.dit.layers == 6 and checkpoint.source == "owner/name"
    assert no_network == []


@pytest.mark.parametrize("by_environment", [False, True], ids=["--offline", "HF_HUB_OFFLINE"])
def test_offline_without_a_cache_says_so_without_a_socket(
    cache, no_network, monkeypatch, by_environment
):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", by_environment)
    with pytest.raises(ModelError, match=r"not in the Hugging Face cache; connect") as raised:
        load_checkpoint("owner/name", offline=not by_environment)
    assert "\n" not in str(raised.value) and no_network == []


def test_a_network_that_is_down_is_one_line(cache, no_network):
    with pytest.raises(ModelError, match=r"owner/name") as raised:
        load_checkpoint("owner/name")
    assert "\n" not in str(raised.value) and no_network


def hub_error(name: str) -> Exception:
    """An error of huggingface_hub, made without the response it wants."""
    kind = getattr(hub_errors, name)
    error: Exception = kind.__new__(kind)
    error.args = ("first line\nsecond line",)
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (hub_error("RepositoryNotFoundError"), "no such Hugging Face repository; check the name"),
        (hub_error("GatedRepoError"), "log in with: hf auth login"),
        (hub_error("RevisionNotFoundError"), "has no revision"),
        (hub_error("HfHubHTTPError"), "cannot be downloaded"),
        (
            hub_errors.HfHubHTTPError.__bases__[0]("reset"),
            "cannot be downloaded: reset",
        ),
        (hub_error("HFValidationError"), "cannot be downloaded: first line$"),
        (OSError(28, "No space left on device"), "cannot be downloaded: .*No space left"),
        (RuntimeError(), "cannot be downloaded: RuntimeError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failed_download_is_one_line_with_exit_code_4(monkeypatch, error, message):
    def download(repository: str, **options: Any) -> NoReturn:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ModelError, match=message) as raised:
        find_source("owner/name", revision="v2")
    assert "\n" not in str(raised.value) and raised.value.exit_code == 4


def test_an_empty_name_is_no_model():
    """As of a variable of the shell that is not set; it does not mean the current folder."""
    with pytest.raises(ModelError, match="no model '': the name is empty"):
        find_source("")
