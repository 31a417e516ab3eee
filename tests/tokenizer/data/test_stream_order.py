"""The order of streamed images: every sample once per epoch, from the seed alone, with few blocks open."""

import numpy as np
import pytest

from tokenizer.data.streaming.order import StreamOrder

CASES = [
    ([1], 1, 10),
    ([5, 1, 9, 30, 2], 6, 20),  # 47 samples: lanes of 8 and 7, windows of 3
    ([3] * 11, 4, 1),  # blocks alone are shuffled
    ([100], 7, 1000),  # windows longer than lanes
    ([2, 2], 4, 8),
]


def epochs(order, number):
    """The samples of the first epochs, as batches give them."""
    total = number * order.num_samples
    places = [order.place(*divmod(position, order.batch_size)) for position in range(total)]
    samples = [int(order.window(*place[:-1])[place.position]) for place in places]
    assert all(place.epoch == position // order.num_samples for position, place in enumerate(places))
    return [samples[start : start + order.num_samples] for start in range(0, total, order.num_samples)]


@pytest.mark.parametrize(("counts", "batch_size", "shuffle_buffer"), CASES)
def test_every_epoch_has_every_sample_once(counts, batch_size, shuffle_buffer):
    found = epochs(StreamOrder(np.array(counts), batch_size, 3, shuffle_buffer), 3)
    assert all(sorted(epoch) == list(range(sum(counts))) for epoch in found)


def test_the_order_follows_seed_and_epoch():
    counts = np.array([5, 1, 9, 30, 2])
    first, second = epochs(StreamOrder(counts, 6, 0, 20), 2)
    assert [first, second] == epochs(StreamOrder(counts, 6, 0, 20), 2)
    others = epochs(StreamOrder(counts, 6, 1, 20), 2)
    assert len({tuple(epoch) for epoch in (first, second, *others, range(47))}) == 5


def test_blocks_are_shuffled_and_not_only_windows():
    """A lane has other samples in every epoch."""
    found = epochs(StreamOrder(np.full(20, 3), 4, 0, 8), 3)
    assert len({frozenset(epoch[lane::4]) for epoch in found for lane in range(4)}) == 12


def test_a_lane_reads_on_and_shuffles_within_its_window():
    """Lanes share no block but where one ends and the next begins; what is held at once is a window."""
    order = StreamOrder(np.full(40, 10), 8, 0, 80)  # 50 samples a lane, windows of 10
    block_of = np.repeat(np.arange(40), 10)
    visits = 0
    for lane in range(8):
        windows = [order.window(0, lane, window) for window in range(6)]
        touched = [set(block_of[window[window >= 0]].tolist()) for window in windows]
        assert all(len(blocks) <= 2 for blocks in touched)
        visits += len(set().union(*touched))
        assert sum((window >= 0).sum() for window in windows) == 50
    assert 40 <= visits <= 40 + 7
    assert np.any(np.diff(order.window(0, 0, 1)) < 0)


def test_lanes_come_to_their_next_windows_in_turn():
    """Were all to read at one step, a training would wait there."""
    order = StreamOrder(np.full(100, 8), 16, 0, 16 * 10)  # 50 steps an epoch, windows of 10
    for step in range(1, 50):
        new = sum(order.place(step, lane).window != order.place(step - 1, lane).window for lane in range(16))
        assert new <= 2, step
