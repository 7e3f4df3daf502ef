"""The recipes' training steps in idiomatic, optimized PyTorch with the same networks.

Fakes for D are generated without a graph, D's weights take no gradients in G's update,
optimizers are fused where possible, and batches are gathered from uint8 images on the device.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional

from benchmarks.harness import Work
from benchmarks.reference import torch_networks
from trainer import recipes
from trainer.config import Config
from trainer.config.schedules import Schedule, value_at

Losses = tuple[torch.Tensor, torch.Tensor]
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}  # types of autocast


def work(*, side: int = 28, channels: int = 1, count: int = 10_000, **options: Any) -> Work:
    """Returns training steps of a recipe; `options` are arguments of Loop and settings."""
    names = Loop.__init__.__kwdefaults__ or {}
    own = {name: options.pop(name) for name in names if name in options}
    config = recipes.resolve(options)
    loop = Loop(config, side, channels, count, **own)

    def call(times: int) -> list[float]:
        for _ in range(times):
            losses = loop.step()
        return [float(loss) for loss in losses]  # blocks until the device has finished

    facts = {"batch": config.batch_size, "threads": torch.get_num_threads()}
    return Work(call, config.batch_size, facts)


class Loop:
    """A recipe's networks, data and training step on a device.

    Args:
      dtype: "float32", "tf32", or "bfloat16" or "float16" for autocast.
      channels_last: whether images and convolutions use the channels-last memory format.
      compiled: whether to use torch.compile with `mode`.
    """

    def __init__(
        self,
        config: Config,
        side: int,
        channels: int,
        count: int,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        channels_last: bool = True,
        compiled: bool = False,
        mode: str = "default",
    ) -> None:
        torch.manual_seed(config.seed)
        torch.set_float32_matmul_precision("highest" if dtype == "float32" else "high")
        torch.backends.cudnn.allow_tf32 = dtype != "float32"
        torch.backends.cudnn.benchmark = True
        self.config, self.classes, self.compiled = config, 10, compiled
        self.device, self.half = torch.device(device), HALF.get(dtype)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        pixels = torch.randint(0, 256, [count, channels, side, side], dtype=torch.uint8)
        self.pixels = pixels.to(self.device).contiguous(memory_format=layout)
        self.labels = torch.randint(0, self.classes, [count], device=self.device)
        networks = torch_networks.build(config, side, channels, self.classes)
        self.g, self.d = (x.to(self.device, memory_format=layout) for x in networks)
        self.g_weights, self.d_weights = list(self.g.parameters()), list(self.d.parameters())
        self.g_update, self.d_update = self._updater("g"), self._updater("d")
        self.averaged = [x for x in self.g.state_dict().values() if x.is_floating_point()]
        self.average = [x.clone() for x in self.averaged]
        self.draw, self.d_loss, self.g_loss = self._draw, self._d_loss, self._g_loss
        if compiled:
            options = dict(dynamic=False, mode=mode)
            self.draw = torch.compile(self._draw, **options)
            self.d_loss = torch.compile(self._d_loss, **options)
            self.g_loss = torch.compile(self._g_loss, **options)

    def step(self) -> Losses:
        """Runs one step; returns the losses of D and G."""
        for k in range(self.config.d_steps):
            if k == 0 or not self.config.repeat_reals:
                reals, labels = self._reals()
            if self.config.updates.fakes == "simultaneous":
                return self._update_both(reals, labels)
            d_loss = self._update_d(reals, labels)
        g_loss = self._update_g()
        if self.config.ema_half_life_kimg:
            half_life = value_at(self.config.ema_half_life_kimg, 0)
            half_lives = self.config.batch_size / (1000 * half_life)
            # The same operation as in the averages of torch.optim.swa_utils.
            torch._foreach_lerp_(self.average, self.averaged, 1 - 0.5**half_lives)
        return d_loss, g_loss

    def _update_d(self, reals: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            fakes = self.draw(self._latents(), labels)
        if self.config.updates.batches == "sequential":
            on_reals = self.d_loss(reals, None, labels)
            self._descend(on_reals, self.d_update)
            on_fakes = self.d_loss(None, fakes, labels)
            self._descend(on_fakes, self.d_update)
            return 0.5 * (on_reals.detach() + on_fakes.detach())
        loss = self.d_loss(reals, fakes, labels)
        self._descend(loss, self.d_update)
        return loss.detach()

    def _update_g(self) -> torch.Tensor:
        labels = torch.randint(self.classes, [self.config.batch_size], device=self.device)
        with self._frozen_d():
            loss = self.g_loss(self.draw(self._latents(), labels), labels)
            self._descend(loss, self.g_update)
        return loss.detach()

    def _update_both(self, reals: torch.Tensor, labels: torch.Tensor) -> Losses:
        """Computes both gradients from the same weights and fakes, then applies both updates."""
        fakes = self.draw(self._latents(), labels)
        if self.compiled:
            # A compiled graph allows one backward pass, so D judges the fakes twice.
            d_loss = self.d_loss(reals, fakes.detach(), labels)
            d_gradients = torch.autograd.grad(d_loss, self.d_weights)
            with self._frozen_d():
                g_loss = self.g_loss(fakes, labels)
                g_gradients = torch.autograd.grad(g_loss, self.g_weights)
        else:
            on_reals = self._judge(self._to_range(reals), labels)
            on_fakes = self._judge(fakes, labels)
            d_loss = self._loss(on_reals, True) + self._loss(on_fakes, False)
            g_loss = self._loss(on_fakes, True)
            d_gradients = torch.autograd.grad(d_loss, self.d_weights, retain_graph=True)
            g_gradients = torch.autograd.grad(g_loss, self.g_weights)
        for weights, gradients, update in (
            (self.d_weights, d_gradients, self.d_update),
            (self.g_weights, g_gradients, self.g_update),
        ):
            for weight, gradient in zip(weights, gradients):
                weight.grad = gradient
            update()
        return d_loss.detach(), g_loss.detach()

    def _descend(self, loss: torch.Tensor, update: Callable[[], None]) -> None:
        loss.backward()
        update()

    def _updater(self, network: str) -> Callable[[], None]:
        """Returns a function that steps the optimizer and its schedule and clears gradients."""
        weights = self.g_weights if network == "g" else self.d_weights
        rate = getattr(self.config, f"{network}_lr")
        initial, beta2 = value_at(rate, 0), value_at(self.config.beta2, 0)
        if self.config.optimizer == "adam":
            betas = (self.config.beta1, beta2)
            optimizer = torch.optim.Adam(weights, initial, betas, eps=1e-7, fused=True)
        else:
            optimizer = torch.optim.RMSprop(weights, initial, beta2, eps=1e-7)
        kimg = self.config.batch_size / 1000
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda k: value_at(rate, k * kimg) / initial
        )

        def update() -> None:
            optimizer.step()
            if isinstance(rate, Schedule):
                schedule.step()
            optimizer.zero_grad(set_to_none=True)

        return update

    @contextlib.contextmanager
    def _frozen_d(self) -> Iterator[None]:
        self.d.requires_grad_(False)
        yield
        self.d.requires_grad_(True)

    # Evaluation of the networks. torch.compile compiles the first three separately.

    def _draw(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with self._autocast():
            return self.g(latents, labels)

    def _d_loss(self, reals: Any, fakes: Any, labels: torch.Tensor) -> torch.Tensor:
        """Returns D's loss on reals and fakes; either may be None, except in a joint update."""
        if self.config.updates.batches == "joint":
            both = torch.cat([self._to_range(reals).to(fakes.dtype), fakes])
            on_reals, on_fakes = self._judge(both, torch.cat([labels, labels])).chunk(2)
            return 0.5 * (self._loss(on_reals, True) + self._loss(on_fakes, False))
        if fakes is None:
            return self._loss(self._judge(self._to_range(reals), labels), True)
        on_fakes = self._loss(self._judge(fakes, labels), False)
        if reals is None:
            return on_fakes
        return on_fakes + self._loss(self._judge(self._to_range(reals), labels), True)

    def _g_loss(self, fakes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = self._judge(fakes, labels)
        return -logits.mean() if self.config.loss == "hinge" else self._loss(logits, True)

    def _judge(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with self._autocast():
            return self.d(images, labels)

    def _loss(self, logits: torch.Tensor, real: bool) -> torch.Tensor:
        towards = -logits if real else logits
        if self.config.loss == "hinge":
            return functional.relu(1 + towards).mean()
        return functional.softplus(towards).mean()

    def _to_range(self, pixels: torch.Tensor) -> torch.Tensor:
        images = pixels.float()
        images = images / 127.5 - 1 if self.config.image_range == "tanh" else images / 255
        if self.config.horizontal_flip:
            mirrored = torch.rand([len(images), 1, 1, 1], device=images.device) < 0.5
            images = torch.where(mirrored, images.flip(3), images)
        return images

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.half, enabled=self.half is not None)

    def _reals(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns a random batch of images [N, C, H, W] uint8 and its labels."""
        chosen = torch.randint(len(self.pixels), [self.config.batch_size], device=self.device)
        return self.pixels[chosen], self.labels[chosen]

    def _latents(self) -> torch.Tensor:
        shape = [self.config.batch_size, self.config.latent_dim]
        if self.config.latent_distribution == "uniform":
            return 2 * torch.rand(shape, device=self.device) - 1
        return torch.randn(shape, device=self.device)
