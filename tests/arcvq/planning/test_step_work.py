"""The work of a step: operations of products, bytes of operators, and the longer of both on a GPU."""

import pytest
import torch
from torch import nn

from arcvq.planning.fake_memory import FakeAllocation
from arcvq.planning.step_work import Accelerator, StepWork

GPU = Accelerator("test", {"no": 100.0, "bf16": 200.0}, 50.0)


def work_of(step):
    """The work of a step, which is the same with memory and without."""
    with StepWork() as real:
        step()
    with FakeAllocation(), StepWork() as fake:
        step()
    assert (real.flops, real.bytes) == (fake.flops, fake.bytes)
    return real


def test_a_product_and_its_gradients_are_three():
    def step():
        first, second = torch.ones(3, 5, requires_grad=True), torch.ones(5, 7, requires_grad=True)
        (first @ second).backward(torch.ones(3, 7))

    assert work_of(step).flops == 3 * 2 * 3 * 5 * 7


def test_a_convolution_is_counted_with_both_of_its_gradients():
    def step():
        conv, images = nn.Conv2d(4, 6, 3, bias=False), torch.ones(2, 4, 8, 8, requires_grad=True)
        conv(images).sum().backward()

    assert work_of(step).flops == 3 * 2 * 2 * 6 * 6 * 6 * 4 * 9


def test_operators_move_their_operands_and_results_and_views_move_nothing():
    def step():
        numbers = torch.ones(10, 4)  # writes 160 bytes
        numbers.t()[:2].view(2, 10) + 1  # reads and writes 80
        numbers.new_empty(100)
        numbers.mul_(2)  # one tensor, in place
        torch.ones(1, dtype=torch.uint8).expand(64).sum()  # writes 1; reads 1, writes 8

    assert work_of(step).bytes == 160 + (80 + 80) + 160 + 1 + (1 + 8)


@pytest.mark.parametrize(("flops", "bytes_moved", "seconds"), [(1000, 100, 10), (1000, 1000, 20)])
def test_the_longer_one_counts(flops, bytes_moved, seconds):
    work = StepWork()
    work.flops, work.bytes = flops, bytes_moved
    assert work.seconds_on(GPU, "no") == seconds
    assert work.seconds_on(GPU, "bf16") == max(flops / 200, bytes_moved / 50)
