"""Two processes with two images each learn from a step what one process with all four learns, in every variant."""

import multiprocessing
import socket

import pytest
import torch
from torch import distributed

from modeling_reg4pru import Reg4PruConfig, Reg4PruForSemanticSegmentation
from reg4pru.training.distillation import drift_loss

from .. import variants

VARIANTS = {
    **variants.VARIANTS,
    "masked_attention": {"masked_attention": True, "selection_pool": "all"},
}
SEEDS = {"half_routed": 5}  # the first draw routes


def gradients(variant: str, part: slice) -> torch.Tensor:
    """All gradients of one step of a variant on some of four images, one after the other."""
    torch.manual_seed(1)
    config = Reg4PruConfig(**{**variants.TINY, "masked_attention": False, **VARIANTS[variant]})
    model = Reg4PruForSemanticSegmentation(config).double()
    model.train()
    model.set_mask_annealing(0.5)
    pixel_values = torch.randn(4, 3, 64, 64, dtype=torch.double)
    labels = (torch.rand(4, 64, 64) < torch.tensor([0.02, 0.4, 0.1, 0.3])[:, None, None]).long()
    labels[0, :48] = 255  # a loss that was averaged by process would weigh this image's pixels twice
    torch.manual_seed(SEEDS.get(variant, 2))
    dense_states = None
    if model.config.drift_correction:  # of a batch whose variance is that of none of its parts
        spread = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.double)[:, None, None]
        dense_states = spread * (1 + torch.randn(4, 70, 32, dtype=torch.double))
    outputs = model(pixel_values[part], labels=labels[part], keep_rates=0.6)
    drift = 0.0 if outputs.reactivated is None else drift_loss(*outputs.reactivated, dense_states[part])
    (outputs.loss + drift).backward()
    return torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None])


def _work(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    means = {}
    for variant in VARIANTS:
        means[variant] = gradients(variant, slice(2 * rank, 2 * rank + 2))
        distributed.all_reduce(means[variant])
        means[variant] /= 2
    if rank == 0:
        torch.save(means, f"{folder}/means.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def means(tmp_path_factory):
    """Gradients by variant, averaged over two processes."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["modeling_reg4pru"])
    workers = [context.Process(target=_work, args=(rank, port, str(folder))) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(100)
        assert worker.exitcode == 0
    return torch.load(folder / "means.pt")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_one_process(means, variant):
    whole = gradients(variant, slice(None))
    assert (means[variant] - whole).abs().max() < 1e-6 * whole.abs().max()
    halves = sum(gradients(variant, slice(start, start + 2)) for start in (0, 2)) / 2
    assert (halves - whole).abs().max() > 1e-3 * whole.abs().max(), "the test could not fail"
