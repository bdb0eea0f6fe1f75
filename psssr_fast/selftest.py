"""The promises of the README, tried out on this machine: what ``psssr selftest`` does.

Every check makes something go wrong on purpose, or computes something twice, with the real model
and real files, in a temporary folder. Nothing is compared with numbers stored beforehand.
"""

import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from psssr_fast.checkpoint import load_checkpoint
from psssr_fast.errors import InputError, ModelError, OutOfMemory, OutputError, PsssrError
from psssr_fast.faults import injected
from psssr_fast.recovery import modules_of
from psssr_fast.selftest_lab import Failure, Lab, NotHere, digest, require, sound_of
from psssr_fast.video import open_reader

KILLS = ("chunk-renamed:2:kill", "output-renamed:1:kill")
CALLS = 6
LEAST_PSNR = 50.0  # dB, of the engine beside the plain networks in fp32


class Status(StrEnum):
    """How a check ended."""

    PASS = "pass"
    FAIL = "FAIL"
    SKIP = "skip"


@dataclass(frozen=True)
class Check:
    """One promise.

    Attributes:
        name: in one word or two.
        run: tries it, and says what was seen; raises Failure or NotHere.
        slow: starts processes.
    """

    name: str
    run: Callable[[Lab], str]
    slow: bool = False


@dataclass(frozen=True)
class Result:
    """How a check went: what was seen, or why not."""

    name: str
    status: Status
    detail: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def run_checks(device: str = "auto", *, quick: bool = False) -> Iterator[Result]:
    """Make the checks, one after the other.

    Args:
        device: as ``--device``.
        quick: leave out those that start processes.
    """
    with tempfile.TemporaryDirectory(prefix="psssr-selftest-") as folder:
        lab = Lab(Path(folder), device)
        for check in CHECKS:
            if not (quick and check.slow):
                yield _result(check, lab)


def _result(check: Check, lab: Lab) -> Result:
    begin = time.monotonic()
    try:
        status, detail = Status.PASS, check.run(lab)
    except NotHere as reason:
        status, detail = Status.SKIP, str(reason)
    except Failure as reason:
        status, detail = Status.FAIL, str(reason)
    except Exception as error:  # whatever a check did not foresee is what it is there to find
        status, detail = Status.FAIL, f"{type(error).__name__}: {error}"
    return Result(check.name, status, detail, round(time.monotonic() - begin, 2))


def _refused(kind: type[PsssrError], run: Callable[[], object]) -> str:
    """The one line with which ``run`` is refused."""
    try:
        run()
    except kind as error:
        require("\n" not in str(error), f"refused in several lines: {error}")
        return str(error)
    raise Failure("it was not refused")


def fidelity(lab: Lab) -> str:
    """Frames, times and sound come out as they went in."""
    output = lab.place("fidelity")
    lab.upscale(output)
    times = []
    for path in (lab.clip, output):
        with open_reader(path) as reader:
            times.append([frame.pts * reader.info.time_base for frame in reader])
    require(times[0] == times[1], f"times differ: {times[1]} instead of {times[0]}")
    require(sound_of(lab.clip) == sound_of(output), "the sound is not the same packets")
    return f"{len(times[0])} frames, uneven times and sound are the input's"


def accuracy(lab: Lab) -> str:
    """The engine computes what the plain networks compute in fp32."""
    plain = lab.load(torch.float32, "plain")
    clip = torch.from_numpy(lab.few).permute(0, 3, 1, 2) / 255
    error = (lab.upscaler(clip) - plain(clip)).square().mean()
    psnr = float(-10 * error.log10())
    require(psnr >= LEAST_PSNR, f"{psnr:.1f} dB from the plain networks, less than {LEAST_PSNR}")
    dtype = str(lab.upscaler.networks.dtype).removeprefix("torch.")
    return f"{psnr:.0f} dB from the plain networks in float32 (engine in {dtype})"


def repetition(lab: Lab) -> str:
    """The same input gives the same bits, alone and from several threads at once."""
    first = lab.upscaler(lab.few)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: lab.upscaler(lab.few), range(CALLS)))
    differing = sum(not np.array_equal(result, first) for result in results)
    require(not differing, f"{differing} of {CALLS} results differ")
    return f"{CALLS} calls from 4 threads: the same bits"


def kill_and_resume(lab: Lab) -> str:
    """A run that is killed goes on where it was and writes the same file."""
    if not hasattr(signal, "SIGKILL"):
        raise NotHere("this system has no SIGKILL")
    whole = lab.made_elsewhere
    kept = []
    for fault in KILLS:
        output = lab.place(fault.replace(":", "-"))
        killed = lab.upscale_elsewhere(output, fault)
        require(killed.code == -signal.SIGKILL, f"{fault}: not killed; exit code {killed.code}")
        again = lab.upscale_elsewhere(output)
        require(again.code == 0, f"{fault}: then exit code {again.code}: {again.last_line}")
        require(digest(output) == digest(whole), f"{fault}: then another file")
        left = [path.name for path in output.parent.iterdir() if path != output]
        require(not left, f"{fault}: files are left: {', '.join(left)}")
        kept.append(again.report["resumed_frames"])
    return f"{len(KILLS)} kills, the same bytes; frames kept: {', '.join(map(str, kept))}"


def two_processes(lab: Lab) -> str:
    """Another process writes the same bytes."""
    here = lab.place("here")
    lab.upscale(here)
    require(digest(here) == digest(lab.made_elsewhere), "the files differ")
    return f"sha256 {digest(here)[:12]} twice"


def full_disk(lab: Lab) -> str:
    """A full disk is said, and once there is room the run goes on."""
    whole, output = lab.place("room"), lab.place("full")
    lab.upscale(whole)
    with injected("chunk-encoded:2:enospc"):
        _refused(OutputError, lambda: lab.upscale(output))
    require(not output.exists(), "half an output is there")
    resumed = lab.upscale(output).resumed_frames
    require(digest(output) == digest(whole), "then another file")
    return f"said so; then went on after {resumed} frames, the same bytes"


def permission(lab: Lab) -> str:
    """A folder that must not be written to is refused at once."""
    if not hasattr(os, "geteuid") or os.geteuid() == 0:
        raise NotHere("permissions do not hold for the administrator")
    output = lab.place("locked")
    output.parent.chmod(0o500)
    try:
        _refused(OutputError, lambda: lab.upscale(output))
    finally:
        output.parent.chmod(0o700)
    return "refused"


def truncation(lab: Lab) -> str:
    """An input that is cut off is refused, and nothing is written."""
    whole, output = lab.clip.read_bytes(), lab.place("cut")
    for share in (10, 50, 90, 99):
        cut = output.with_name("cut.mp4")
        cut.write_bytes(whole[: len(whole) * share // 100])
        _refused(InputError, partial(lab.upscaler.upscale_video, cut, output))
        cut.unlink()
    require(not list(output.parent.iterdir()), "something was written")
    return "refused at 10, 50, 90 and 99 % of the file"


def playlists(lab: Lab) -> str:
    """Texts that point to other files, and addresses, are refused without a look at them."""
    secret = lab.place("playlist").with_name("secret.ts")
    secret.write_bytes(lab.clip.read_bytes())
    texts = {
        "hls.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
        "concat.mp4": f"ffconcat version 1.0\nfile '{secret}'\n",
    }
    for name, text in texts.items():
        path = secret.with_name(name)
        path.write_text(text, encoding="utf-8")
        _refused(InputError, partial(_first_frame, path))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        _refused(InputError, lambda: _first_frame(f"http://127.0.0.1:{port}/in.mp4"))
        listener.settimeout(0.2)
        try:
            listener.accept()[0].close()
        except TimeoutError:
            return "HLS, concat and http refused; nothing connected"
    raise Failure("the address was connected to")


def _first_frame(path: str | Path) -> object:
    with open_reader(path) as reader:
        return next(iter(reader), None)


def pickles(lab: Lab) -> str:
    """Weights that would run code are refused, whatever they are called."""
    folder = lab.place("pickle").parent
    trace = folder / "it-ran"
    for name in ("model.safetensors", "model.pth"):
        weights = folder / name
        weights.write_bytes(f"\x80\x02cos\nmkdir\n(V{trace}\ntR.".encode("latin-1", "replace"))
        _refused(ModelError, lambda: load_checkpoint(folder, offline=True))
        require(not trace.exists(), f"{name} ran its code")
        weights.unlink()
    return "refused, and not run"


def memory(lab: Lab) -> str:
    """Where memory runs out the same picture is computed with less of it."""
    expected = lab.upscaler(lab.few)
    on_cpu = lab.upscaler.networks.device.type == "cpu"
    points = ("resize", "encode", "base", "draft", "decode", "update")
    for point in points:
        with injected(f"{point}:2:oom"):
            result = lab.upscaler(lab.few)
        farthest = int(np.abs(result.astype(int) - expected).max())
        require(farthest <= (0 if on_cpu else 1), f"{point}: then {farthest} levels away")
    with injected("decode:1+:oom"):
        _refused(OutOfMemory, lambda: lab.upscaler(lab.few))
    return f"{len(points)} points: {'the same bits' if on_cpu else 'within one 8-bit level'}"


def numbers(lab: Lab) -> str:
    """NaN becomes no picture: it is computed again in fp32."""
    upscaler = lab.load(torch.bfloat16)
    base = modules_of(upscaler.networks)[0]
    layer = next(module for name, module in base.named_modules() if name.endswith("ffn2"))

    def spoil(module: torch.nn.Module, inputs: object, output: Tensor) -> Tensor:
        return output if output.dtype == torch.float32 else torch.full_like(output, torch.nan)

    layer.register_forward_hook(spoil)
    recovery = upscaler.recovery()
    picture = torch.from_numpy(lab.few[:4]).permute(0, 3, 1, 2).float() / 127.5 - 1
    result = recovery.restore(recovery.resize(list(picture), 4 * picture.shape[2], 64))
    require(bool(result.isfinite().all()) and float(result.std()) > 0.1, "there is no picture")
    require(len(recovery.warnings) == 1, f"warnings: {recovery.warnings}")
    return recovery.warnings[0]


CHECKS = (
    Check("accuracy", accuracy),
    Check("fidelity", fidelity),
    Check("repetition", repetition),
    Check("two processes", two_processes, slow=True),
    Check("kill and resume", kill_and_resume, slow=True),
    Check("full disk", full_disk),
    Check("permission", permission),
    Check("cut input", truncation),
    Check("playlists", playlists),
    Check("pickles", pickles),
    Check("memory", memory),
    Check("numbers", numbers),
)
