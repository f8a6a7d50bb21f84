"""Memory that is lent again: never while anybody has it."""

import gc
import threading

import numpy as np
import torch

from inat.loader.batches import BufferPool, to_device


def test_a_block_is_lent_again_once_nothing_of_it_is_left() -> None:
    memory = BufferPool()
    lent = memory.lend((4, 3))
    assert (lent.shape, lent.dtype) == ((4, 3), torch.float32)
    place, view = lent.data_ptr(), lent[1:].T
    array = lent.numpy()[2]
    del lent
    assert memory.lend((4, 3)).data_ptr() != place
    del view
    assert memory.lend((4, 3)).data_ptr() != place
    del array
    again = memory.lend((2, 3))  # smaller: the same block does
    assert place in {again.data_ptr(), memory.lend((2, 3)).data_ptr()}


def test_what_autograd_keeps_is_not_lent_again() -> None:
    memory = BufferPool()
    images = memory.lend((2, 3)).copy_(torch.tensor([[1.0, 2, 3], [4, 5, 6]]))
    weight = torch.ones(3, requires_grad=True)
    loss = (images * weight).sum()
    del images
    gc.collect()
    memory.lend((2, 3)).zero_()
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [5, 7, 9]


def test_more_than_the_kept_blocks_are_lent_too() -> None:
    memory = BufferPool(most=2)
    lent = [memory.lend((5,)).fill_(number) for number in range(4)]
    assert [tensor.tolist() for tensor in lent] == [[number] * 5 for number in range(4)]
    assert len(memory._blocks) == 2


def test_a_block_that_is_too_small_gives_way() -> None:
    memory = BufferPool(most=1)
    memory.lend((5,))
    assert memory.lend((5000,)).fill_(7).sum() == 35_000
    assert [len(block) for block, _ in memory._blocks] == [5000]


def test_threads_never_share_a_block() -> None:
    memory = BufferPool()
    wrong = []

    def work(number: int) -> None:
        for _ in range(300):
            lent = memory.lend((1000,)).fill_(number)
            if lent.sum() != 1000 * number:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_normalised_batches_that_are_held_stay_as_they_are() -> None:
    pixels = torch.arange(2 * 2 * 2 * 3, dtype=torch.uint8).view(2, 2, 2, 3)
    batches = [to_device({"image": pixels + n}, "cpu", (0.5,) * 3, (0.5,) * 3) for n in range(6)]
    for n, batch in enumerate(batches):
        expected = ((pixels + n).numpy().astype(np.float64) / 255 - 0.5) / 0.5
        np.testing.assert_allclose(batch.permute(0, 2, 3, 1).numpy(), expected, atol=1e-6)
