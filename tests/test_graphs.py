"""What the cache of graphs does around capture and replay; those themselves need a GPU."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from psssr_fast.runtime import graphs


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    @property
    def is_cuda(self):
        return True


def on_gpu(*values):
    return torch.tensor(values).as_subclass(OnGpu)


@pytest.fixture
def device(monkeypatch):
    """A GPU's streams and captures, recorded; a replay runs the function on the static inputs."""
    log = SimpleNamespace(captures=0, waits=0, fail_next=0)
    event = SimpleNamespace(record=lambda stream: None, synchronize=lambda: None)

    def wait(event):
        log.waits += 1

    def capture(function, inputs):
        if log.fail_next:
            log.fail_next -= 1
            raise torch.OutOfMemoryError("no room")
        log.captures += 1
        static = tuple(x.clone() for x in inputs)
        outputs = function(*static)

        def replay():
            outputs.copy_(function(*static))

        return SimpleNamespace(
            graph=SimpleNamespace(replay=replay), inputs=static, outputs=outputs, done=event
        )

    monkeypatch.setattr(graphs, "_capture", capture)
    stream = SimpleNamespace(wait_event=wait)
    for name, value in (
        ("device", lambda device: nullcontext()),
        ("current_stream", lambda: stream),
        ("synchronize", lambda: None),
        ("empty_cache", lambda: None),
    ):
        monkeypatch.setattr(torch.cuda, name, value)
    return log


def square(x):
    return x * x


def test_shape_is_captured_once_and_replayed_on_new_values(device):
    cache = graphs.GraphCache()
    first = cache.run("square", square, on_gpu(1.0, 2.0))
    second = cache.run("square", square, on_gpu(3.0, 4.0))
    assert (first.tolist(), second.tolist()) == ([1, 4], [9, 16])
    assert (device.captures, device.waits) == (1, 2)
    cache.run("square", square, on_gpu(1.0))
    cache.run("other", square, on_gpu(1.0))
    assert device.captures == 3


def test_view_and_copy_share_a_graph(device):
    cache, wide = graphs.GraphCache(), on_gpu(1.0, 9.0, 2.0, 9.0)
    assert cache.run("square", square, wide[::2]).tolist() == [1, 4]
    assert cache.run("square", square, on_gpu(1.0, 2.0)).tolist() == [1, 4]
    assert device.captures == 1


def test_least_recently_used_goes_before_a_new_one_comes(device):
    cache = graphs.GraphCache(limit=2)
    for size in (1, 2, 1, 3):  # the one of 2 goes
        cache.run("square", square, on_gpu(*[1.0] * size))
    assert (len(cache), device.captures) == (2, 3)
    cache.run("square", square, on_gpu(1.0))
    assert device.captures == 3
    cache.run("square", square, on_gpu(1.0, 1.0))
    assert device.captures == 4


def test_out_of_memory_drops_the_others_and_tries_again(device):
    cache = graphs.GraphCache()
    cache.run("square", square, on_gpu(1.0))
    device.fail_next = 1
    assert cache.run("square", square, on_gpu(2.0, 3.0)).tolist() == [4, 9]
    assert len(cache) == 1


def test_out_of_memory_with_nothing_to_drop_is_raised(device):
    device.fail_next = 1
    cache = graphs.GraphCache()
    with pytest.raises(torch.OutOfMemoryError):
        cache.run("square", square, on_gpu(1.0))
    assert len(cache) == 0
