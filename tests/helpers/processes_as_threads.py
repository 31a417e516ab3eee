"""Threads that play the processes of a training: what one of them asks for a sum of, all of them must."""

import threading


class Processes:
    """`world` of them; `total` and `number` stand in for `all_reduce_sum` and `global_count`."""

    def __init__(self, world):
        self.world = world
        self._barrier = threading.Barrier(world, timeout=30)
        self._brought = [None] * world
        self._own = threading.local()

    def total(self, tensor):
        self._brought[self._own.rank] = tensor
        self._barrier.wait()
        total = sum(self._brought[1:], start=self._brought[0])
        self._barrier.wait()
        return total

    def number(self, tokens):
        return len(tokens) * self.world

    def reduce(self, tensor, reduction):
        """As accelerate's."""
        assert reduction in ("sum", "mean")
        return self.total(tensor) / (self.world if reduction == "mean" else 1)

    def run(self, function):
        """What `function(rank)` returns in each of them."""
        results = [None] * self.world

        def work(rank):
            self._own.rank = rank
            try:
                results[rank] = function(rank)
            except BaseException:
                self._barrier.abort()
                raise

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results
