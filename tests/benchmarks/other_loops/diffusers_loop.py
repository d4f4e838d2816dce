"""A bare loop with diffusers' parts, as its example of unconditional training has it: UNet2DModel, DDPMScheduler, EMAModel.

The same network, batch, precision and number of microbatches as ours. Images stay on the device: nothing is read or decoded.
Adam's updates are fused, as ours are; the example's are not.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel

from bigtrain.families.data_spec import DataSpec
from bigtrain.networks.diffusion.unet import unet_config
from bigtrain.recipe import Recipe
from bigtrain.training.engine.kernels import autocast


def diffusers_loop(recipe: Recipe, spec: DataSpec, device: torch.device) -> Iterator[None]:
    options, optimizer = recipe.family, recipe.family.optimizer
    learned = options.variance == "learned"
    classes = len(spec.classes) if options.class_conditional else None
    outputs = spec.channels * (2 if learned else 1)
    unet = UNet2DModel(**unet_config(options.unet, spec.size, spec.channels, outputs, classes)).train().to(device)
    unet.to(memory_format=torch.channels_last)
    average = EMAModel(unet.parameters(), decay=recipe.ema.decay)
    kind = torch.optim.AdamW if optimizer.kind == "adamw" else torch.optim.Adam
    adam = kind(unet.parameters(), optimizer.lr, optimizer.betas, optimizer.eps, fused=True)
    scheduler = DDPMScheduler(num_train_timesteps=options.timesteps)
    pieces = recipe.train.accumulate
    size = recipe.train.batch_size // pieces
    images = torch.rand(size, spec.channels, *spec.size, device=device).mul_(2).sub_(1)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(len(spec.classes), (size,), device=device) if classes else None
    while True:
        for _ in range(pieces):
            noise = torch.randn_like(images)
            times = torch.randint(0, options.timesteps, (size,), device=device)
            noisy = scheduler.add_noise(images, noise, times)
            with autocast(recipe.train.precision, device):
                predicted = unet(noisy, times, labels, return_dict=False)[0]
            predicted = predicted.chunk(2, dim=1)[0] if learned else predicted
            (F.mse_loss(predicted.float(), noise) / pieces).backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        average.step(unet.parameters())
        yield
