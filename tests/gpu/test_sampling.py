"""Sampling on a GPU: the CPU's samples, without a wait between the first kernel and the last."""

import pytest
import torch

from bigtrain.networks.autoregressive.pixelcnn_sampling import sample
from bigtrain.randomness import Draws
from tests.asking import sampled
from tests.families_table import CASES
from tests.gpu.devices import CPU, no_waits, on_devices, on_each_device
from tests.training.small_steps import small_family, small_networks

SAMPLED = ("gan", "pixel_prior", "diffusion")
SAMPLINGS = {
    "gan": [{}, {"truncation": 0.5}, {"statistics": "standing", "standing_batches": 2}],
    "pixel_prior": [{}, {"capture": True, "temperature": 0.9}],
    "diffusion": [{"sampler": "ancestral"}, {"sampler": "ddim"}, {"sampler": "dpmpp", "steps": 5, "guidance": 1.0}],
}


@on_devices(SAMPLED)
def test_samples_are_those_of_a_cpu(family: str, device: torch.device) -> None:
    """But for rounding; where a value is chosen from a distribution, rounding may choose another now and then."""
    model = small_family(family)
    labels = torch.arange(6) % len(model.spec.classes)
    for options in SAMPLINGS[family]:
        sampling = model.sampling_class.model_validate(options)
        drawn = []
        for kind in (device, CPU):
            networks = {name: network.to(kind) for name, network in small_networks(model).items()}
            ready = model.prepare_sampling(networks, sampling, seed=1)
            drawn.append(sampled(model, ready, labels.to(kind), range(6), 1, sampling))
        assert drawn[0].device.type == device.type
        apart = (drawn[0].cpu() - drawn[1]).abs().flatten(1).amax(1)
        if family == "pixel_prior":
            assert (apart < 1e-3).float().mean() >= 0.5, (options, apart)
        else:
            assert apart.max() < 1e-2, (options, apart)


@on_devices(SAMPLED)
def test_no_sampler_makes_the_host_wait(family: str, device: torch.device) -> None:
    """From the second batch on: the first copies tables and compiles kernels."""
    model = small_family(family)
    networks = {name: network.to(device) for name, network in small_networks(model).items()}
    labels, numbers = torch.arange(6, device=device), torch.arange(6, device=device)
    for options in SAMPLINGS[family]:
        if options.get("capture"):
            continue  # capturing waits once a batch
        sampling = model.sampling_class.model_validate(options)
        ready = model.prepare_sampling(networks, sampling, seed=1)
        sampled(model, ready, labels, numbers, 1, sampling)
        with no_waits(device):
            drawn = sampled(model, ready, labels, numbers + 6, 1, sampling)
        assert torch.isfinite(drawn).all()


@pytest.mark.parametrize("options", [{}, {"top_k": 5, "top_p": 0.9}], ids=str)
@on_each_device
def test_a_captured_row_draws_what_an_eager_one_draws(device: torch.device, options: dict[str, float]) -> None:
    """With a small batch, for which the host's part of a launch is most of the time; capture needs CUDA."""
    section = {key: value for key, value in CASES["pixel_prior"].options["network"].items() if key != "mixtures"}
    model = small_family("pixel_prior", network=section)
    network = small_networks(model)["pixelcnn"].to(device).eval()
    positions = model.spec.size[0] * model.spec.size[1]
    uniforms = Draws(1, device=device).uniform("u", range(3), (positions, network.draws_per_position))
    labels = torch.arange(3, device=device)
    eager, captured = (
        sample(network, uniforms, labels, **options, capture=capture and device.type == "cuda")
        for capture in (False, True)
    )
    assert torch.equal(eager, captured)
