import threading

import numpy as np
import pytest
import torch
from threadpoolctl import ThreadpoolController, threadpool_limits

from tailorbird.search.many_targets import AllAtOnce
from tailorbird.threads import one_thread
from tests.search.families import Supernet


def counts():
    pools = ThreadpoolController().info()
    return [pool["num_threads"] for pool in pools], torch.get_num_threads()


@pytest.fixture(params=[1, 3])
def found(request):
    """Counts as somebody set them, which tests leave as the gate has them."""
    torch_count = torch.get_num_threads()
    with threadpool_limits(request.param):
        torch.set_num_threads(request.param)
        yield counts()
        torch.set_num_threads(torch_count)


def test_one_thread_inside_and_as_found_afterwards(found):
    with one_thread():
        pools, of_torch = counts()
        assert set(pools) == {1} and of_torch == 1
        with one_thread():
            assert counts() == (pools, 1)
        assert counts() == (pools, 1)
    assert counts() == found


def test_as_found_after_an_error(found):
    with pytest.raises(KeyboardInterrupt), one_thread():
        raise KeyboardInterrupt
    assert counts() == found


def test_a_decorated_function_may_call_itself(found):
    @one_thread()
    def product(depth):
        assert counts()[1] == 1
        return np.ones(3) @ np.ones(3) if depth == 0 else product(depth - 1)

    assert product(3) == 3.0
    assert counts() == found


def test_several_threads_leave_all_as_found(found):
    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()
    torch_counts = []

    def first():
        with one_thread():
            first_in.set()
            assert second_in.wait(30)
            torch_counts.append(torch.get_num_threads())
        first_out.set()

    def second():
        assert first_in.wait(30)
        with one_thread():
            second_in.set()
            assert first_out.wait(30)
            torch_counts.append(torch.get_num_threads())

    threads = [threading.Thread(target=one) for one in (first, second)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert torch_counts == [1, 1]
    assert counts() == found


def test_a_search_holds_and_puts_back(found):
    seen = set()

    class Watching(Supernet):
        def quality(self, genomes):
            seen.update(counts()[0])
            return super().quality(genomes)

    AllAtOnce(generations=1).search(Watching(), [{"macs": 1e9}], seed=0)
    assert seen == {1}
    assert counts() == found
