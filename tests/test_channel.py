"""A queue between threads: order, bounds, and nobody who waits for a side that has gone."""

import threading
from queue import Full

import pytest

from psssr_fast.runtime.channel import Channel

SOON = 1800  # seconds: of a busy machine; an idle one takes none


def ended(*threads: threading.Thread) -> bool:
    """Whether all threads end soon."""
    for thread in threads:
        thread.join(SOON)
    return not any(thread.is_alive() for thread in threads)


def started(function, *arguments) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def test_items_come_out_in_order_and_the_end_comes_last():
    channel: Channel[int] = Channel(3)
    taken: list[int] = []
    reader = started(taken.extend, channel)
    assert all(channel.put(number) for number in range(100))
    channel.end()
    assert ended(reader) and taken == list(range(100))
    assert list(channel) == []  # once more


def test_it_holds_no_more_than_its_depth():
    channel: Channel[int] = Channel(2)
    assert channel.put(1, wait=False) and channel.put(2, wait=False)
    with pytest.raises(Full):
        channel.put(3, wait=False)
    assert next(channel) == 1
    assert channel.put(3, wait=False)
    channel.end()  # needs no room
    assert list(channel) == [2, 3]


@pytest.mark.parametrize("waiting", [1, 3])
def test_all_that_wait_for_room_wake_when_it_is_closed(waiting):
    channel: Channel[int] = Channel(1)
    channel.put(0)
    answers: list[bool] = []
    putters = [started(lambda: answers.append(channel.put(1))) for _ in range(waiting)]
    channel.close()
    assert ended(*putters) and answers == [False] * waiting
    assert channel.closed and not channel.put(2) and not channel.put(2, wait=False)
    assert list(channel) == []  # what was held is dropped


@pytest.mark.parametrize("leave", [Channel.close, Channel.end])
@pytest.mark.parametrize("waiting", [1, 3])
def test_all_that_wait_for_an_item_wake_when_none_will_come(waiting, leave):
    channel: Channel[int] = Channel(1)
    answers: list[list[int]] = []
    takers = [started(lambda: answers.append(list(channel))) for _ in range(waiting)]
    leave(channel)
    assert ended(*takers) and answers == [[]] * waiting
