"""Runs ``psssr`` in forks of a process that has imported everything: a run costs what it computes.

Reads a JSON object a line: ``arguments``, ``folder``, ``environment``, ``out`` and ``err`` (files).
Answers with the number of the process, and when it has ended with its exit code.
"""

import contextlib
import gc
import io
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from job_fixtures import SMALL, write_clip

from psssr_fast import faults
from psssr_fast.cli import main


def run(request: dict[str, Any]) -> int:
    """What the fork does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run behind "&"
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in enumerate(("out", "err"), start=1):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    return main(request["arguments"])


def warm_up() -> None:
    """Have everything loaded and compiled that a run needs."""
    with tempfile.TemporaryDirectory(prefix="psssr-warm-up-") as folder:
        clip = write_clip(Path(folder, "clip.mp4"), range(0, 400, 40))
        arguments = [str(clip), "-o", str(Path(folder, "out.mp4")), *SMALL]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert main(["upscale", *arguments]) == 0
    faults._faults = None  # each fork has an environment of its own


def serve() -> None:
    """Until there are no more requests."""
    torch.set_num_threads(1)  # threads do not come along into a fork
    warm_up()
    gc.collect()  # decoders with threads: a fork that collected them would wait for these for ever
    gc.freeze()
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        process = os.fork()
        if process == 0:
            code = 70
            try:
                code = run(request)
            except SystemExit as error:
                code = int(error.code or 0)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(process, flush=True)
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
