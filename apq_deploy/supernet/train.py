"""Progressive shrinking: the largest network first, then kernel sizes, depths and widths, distilled from the largest.

Source: OFA (ICLR 2020), section 3.3. Every step's batch and subnets depend on the seed, the phase and the step alone,
so a run that was stopped goes on to the very result that it would have had.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from apq_deploy.arch import Arch
from apq_deploy.errors import UserError
from apq_deploy.files import atomic
from apq_deploy.progress import cpu_seconds, progress
from apq_deploy.space import CHANNEL_GENE, KERNEL_GENE, SearchSpace
from apq_deploy.supernet.data import ImageSet, augment, fingerprint, to_unit
from apq_deploy.supernet.network import SUPERNET_SCHEMA, Supernet, read_safetensors
from apq_deploy.supernet.ranks import ALONE, Ranks, share_statistics
from apq_deploy.supernet.subnet import Subnet, reestimate_batch_norm

Phase = Literal["largest", "kernel", "depth", "width"]
PHASES: tuple[Phase, ...] = ("largest", "kernel", "depth", "width")
CHECKPOINT_SCHEMA = "apq-deploy/training/1"
CHECKPOINT_SECONDS = 15.0
"""After which a checkpoint is written before its step, where steps are slow."""
CALIBRATION_IMAGES = 2000
CALIBRATION_PIXELS = CALIBRATION_IMAGES * 28 * 28
"""Of one batch."""


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How a supernet is trained. Steps are those of one phase; each step of shrinking trains `subnets_per_step`.

    Without `shrinking`, the same steps go to subnets drawn from the whole space from the first step on, and to the
    labels alone, since there is no trained network to learn from: what progressive shrinking is compared with.
    """

    largest_steps: int = 3000
    kernel_steps: int = 800
    depth_steps: int = 1000
    width_steps: int = 2400
    batch_size: int = 128
    subnets_per_step: int = 2
    learning_rate: float = 4e-3
    shrinking_learning_rate: float = 2e-3
    shrinking: bool = True
    weight_decay: float = 1e-4
    checkpoint_every: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for phase in PHASES:
            if self.steps(phase) < (1 if phase == "largest" else 0):
                raise UserError(f"expected a positive number of steps for the phase {phase!r}, got {self.steps(phase)}")
        if self.batch_size < 2 or self.subnets_per_step < 1 or self.checkpoint_every < 1:
            raise UserError("expected batch_size >= 2, subnets_per_step >= 1 and checkpoint_every >= 1")
        for rate in (self.learning_rate, self.shrinking_learning_rate):
            if not 0 < rate < math.inf:
                raise UserError(f"expected a learning rate above 0, got {rate}")

    def steps(self, phase: Phase) -> int:
        return {
            "largest": self.largest_steps,
            "kernel": self.kernel_steps,
            "depth": self.depth_steps,
            "width": self.width_steps,
        }[phase]

    def rate(self, phase: Phase, step: int) -> float:
        """Learning rate: a short warm-up and a cosine over the largest network, another over all of the shrinking."""
        if phase == "largest":
            base, done, total = self.learning_rate, step, self.largest_steps
        else:
            before = sum(self.steps(p) for p in PHASES[1 : PHASES.index(phase)])
            base, done = self.shrinking_learning_rate, before + step
            total = sum(self.steps(p) for p in PHASES[1:])
        warm = min(1.0, (done + 1) / 100)
        return base * warm * 0.5 * (1 + math.cos(math.pi * done / total))


def batch_indices(n_images: int, batch_size: int, step: int, seed: tuple[int, ...]) -> NDArray[np.int64]:
    """Indices of the batch of a step: every epoch is its own permutation of the images."""
    per_epoch = max(1, n_images // batch_size)
    epoch, index = divmod(step, per_epoch)
    order = np.random.default_rng((*seed, epoch)).permutation(n_images)
    return order[index * batch_size : (index + 1) * batch_size]


def sample_archs(space: SearchSpace, phase: Phase, n: int, rng: np.random.Generator) -> list[Arch]:
    """Random subnets of a phase: what is not elastic yet stays at its largest."""
    genes = space.sample(n, rng)
    depth, blocks = space.split(genes)
    largest_depth, largest_blocks = space.split(space.extreme(largest=True)[None])
    if phase == "kernel":
        depth[:] = largest_depth
    if phase in ("kernel", "depth"):
        blocks[..., CHANNEL_GENE] = largest_blocks[..., CHANNEL_GENE]
    if phase == "largest":
        depth[:], blocks[..., KERNEL_GENE] = largest_depth, largest_blocks[..., KERNEL_GENE]
        blocks[..., CHANNEL_GENE] = largest_blocks[..., CHANNEL_GENE]
    return [space.decode(genome, quantized=False) for genome in genes]


def distillation_loss(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross entropy against the teacher's probabilities."""
    return -(teacher_logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()


class _Run:
    """State of a training run: network, optimizer, teacher, and how far it has come."""

    def __init__(
        self, space: SearchSpace, images: ImageSet, settings: TrainSettings, device: str, ranks: Ranks
    ) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.about = asdict(settings) | {"training images": fingerprint(images)}
        self.device = device
        self.ranks = ranks
        self.network = Supernet(space)
        if ranks.count > 1:
            share_statistics(self.network)
        self.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.forward = ranks.parallel(self.network)
        decayed = [p for p in self.network.parameters() if p.ndim > 1]
        plain = [p for p in self.network.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups)
        self.teacher: Subnet | None = None
        self.phase: Phase = "largest"
        self.step = 0
        self.seconds = 0.0  # spent on training, over all starts
        self.earlier_cpu_seconds = 0.0
        self.steps = 0  # of this start
        self.saved_at = time.monotonic()

    def tensors(self) -> dict[str, Tensor]:
        tensors = {f"network.{name}": t for name, t in self.network.state_dict().items()}
        if self.teacher is not None:
            tensors |= {f"teacher.{name}": t for name, t in self.teacher.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        return {name: t.detach().cpu().contiguous() for name, t in tensors.items()}

    def save(self, path: Path) -> None:
        header = {
            "phase": self.phase,
            "step": self.step,
            "seconds": round(self.seconds, 1),
            "cpu_seconds": round(self.earlier_cpu_seconds + self.ranks.count * cpu_seconds(), 1),
            "settings": self.about,
        }
        metadata = {
            "schema": CHECKPOINT_SCHEMA,
            **self.network.space.identity,
            "run": json.dumps(header, sort_keys=True),
        }
        with atomic(path) as temporary:
            save_file(self.tensors(), temporary, metadata)
        self.saved_at = time.monotonic()

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises: UserError for a file that is damaged or comes from a run with another space or other settings.
        """
        tensors, metadata = read_safetensors(path)
        if metadata.get("schema") != CHECKPOINT_SCHEMA:
            raise UserError(
                f"{path} is not a checkpoint of `apq-deploy train`; move it away or train in another folder"
            )
        header = json.loads(metadata["run"])
        ours = {k: v for k, v in self.about.items() if k != "checkpoint_every"}
        theirs = {k: v for k, v in header["settings"].items() if k != "checkpoint_every"}
        self.network.space.require(metadata, path)
        if ours != theirs:
            changed = sorted(k for k in ours if ours[k] != theirs.get(k))
            raise UserError(
                f"{path} belongs to a run with another {', '.join(changed)}; call with the same values to go on, "
                "or use another folder"
            )

        def part(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

        self.network.load_state_dict(part("network."))
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in part("optimizer.").items():
            index, field = name.split(".")
            state.setdefault(int(index), {})[field] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self.phase, self.step, self.seconds = header["phase"], header["step"], header["seconds"]
        self.earlier_cpu_seconds = header["cpu_seconds"]
        if self.phase != "largest" and self.settings.shrinking:
            self.set_teacher()
            assert self.teacher is not None
            self.teacher.load_state_dict(part("teacher."))

    def set_teacher(self) -> None:
        space = self.network.space
        largest = space.decode(space.extreme(largest=True), quantized=False)
        self.teacher = self.network.extract(largest).eval()
        self.teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def enter(self, phase: Phase, calibration: list[Tensor]) -> None:
        """Begin a phase: after the largest network it becomes the teacher; before widths the channels are ordered."""
        self.phase, self.step = phase, 0
        if not self.settings.shrinking:
            return
        if phase == "kernel":
            self.set_teacher()
            assert self.teacher is not None
            reestimate_batch_norm(self.teacher, calibration)
        if phase == "width":
            self.network.sort_channels()
            self.optimizer.state.clear()  # its averages belong to the channels' old places


@dataclass(frozen=True, slots=True)
class Spent:
    """What a training took: seconds of its steps over all starts, and processor time of the starts before this one.

    steps: how many this start has done; none, where an earlier one had ended the training.
    """

    steps: int
    seconds: float
    earlier_cpu_seconds: float


OnLoss = Callable[[Phase, int, float], None]
"""Called with the phase, the number of the step and the loss of its last subnet."""


def train_supernet(
    space: SearchSpace,
    images: ImageSet,
    folder: Path,
    settings: TrainSettings,
    device: str = "cpu",
    ranks: Ranks = ALONE,
    on_loss: OnLoss | None = None,
) -> tuple[Supernet, Spent]:
    """The trained supernet and what it took.

    The weights are also in `folder`/supernet.safetensors; a run goes on from `folder`/training.safetensors. Of several
    `ranks`, which have joined already, all return the same network and the first one writes.

    Raises: UserError if a checkpoint of another run is in the way, or a batch cannot be shared evenly.
    """
    checkpoint = folder / "training.safetensors"
    ranks.share(min(settings.batch_size, len(images)))
    run = _Run(space, images, settings, device, ranks)
    if checkpoint.exists():
        run.restore(checkpoint)
    ranks.check_equal((len(images), PHASES.index(run.phase), run.step), "images, phase and step", device)
    calibration = calibration_batches(images, settings.seed, device)
    try:
        for phase in PHASES[PHASES.index(run.phase) :]:
            if phase != run.phase:
                run.enter(phase, calibration)
            _train_phase(run, images, checkpoint, on_loss)
    finally:
        run.forward = run.network  # DistributedDataParallel holds on to the connection, which is to end before Python
    network = run.network.eval()
    largest = space.decode(space.extreme(largest=True), quantized=False)
    reestimate_elastic(network, largest, calibration)
    if ranks.is_first:
        save_supernet(network, folder / "supernet.safetensors")
    return network, Spent(run.steps, run.seconds, run.earlier_cpu_seconds)


def _train_phase(run: _Run, images: ImageSet, checkpoint: Path, on_loss: OnLoss | None) -> None:
    settings, network, phase, ranks = run.settings, run.network, run.phase, run.ranks
    number, total = PHASES.index(phase), settings.steps(phase)
    largest = network.space.decode(network.space.extreme(largest=True), quantized=False)
    network.train()
    silent = nullcontext(lambda done, note: None)
    with progress(f"train {phase}", total) if ranks.is_first else silent as advance:
        for step in range(run.step, total):
            started = time.perf_counter()
            rng = np.random.default_rng((settings.seed, 1, number, step))
            chosen = batch_indices(len(images), settings.batch_size, step, (settings.seed, 2, number))
            own = ranks.share(len(chosen))
            x = to_unit(augment(images.images(chosen[own]), rng, len(chosen), own), run.device)
            y = images.labels(chosen[own]).to(run.device)
            for group in run.optimizer.param_groups:
                group["lr"] = settings.rate(phase, step)
            run.optimizer.zero_grad()
            if not settings.shrinking:
                n = 1 if phase == "largest" else settings.subnets_per_step
                archs = sample_archs(network.space, "width", n, rng)
                for arch in archs:
                    loss = F.cross_entropy(run.forward(x, arch), y)
                    (loss / len(archs)).backward()
            elif phase == "largest":
                loss = F.cross_entropy(run.forward(x, largest), y)
                loss.backward()
            else:
                assert run.teacher is not None
                with torch.no_grad():
                    target = run.teacher(x)
                for arch in sample_archs(network.space, phase, settings.subnets_per_step, rng):
                    logits = run.forward(x, arch)
                    loss = (F.cross_entropy(logits, y) + distillation_loss(logits, target)) / 2
                    (loss / settings.subnets_per_step).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            run.optimizer.step()
            run.step = step + 1
            run.steps += 1
            run.seconds += time.perf_counter() - started
            note = ""
            if on_loss is not None or step % 10 == 9 or run.step == total:
                mean = ranks.total(loss.item(), run.device) / ranks.count
                note = f"loss {mean:.3f}"
                if on_loss is not None:
                    on_loss(phase, run.step, mean)
            advance(run.step, note)
            due = time.monotonic() - run.saved_at > CHECKPOINT_SECONDS
            if ranks.is_first and (due or run.step % settings.checkpoint_every == 0 or run.step == total):
                run.save(checkpoint)


def calibration_batches(images: ImageSet, seed: int, device: str = "cpu", n: int = CALIBRATION_IMAGES) -> list[Tensor]:
    """Batches of training images for batch-norm statistics, the same for the same seed.

    A batch is as large as memory allows: statistics of one batch are exact for every layer at once, an average over
    batches is not where a layer reads what other statistics have rounded.
    """
    chosen = np.random.default_rng((seed, 3)).permutation(len(images))[:n]
    pixels = int(images.images(chosen[:1]).shape[-1]) ** 2
    size = max(64, min(n, CALIBRATION_PIXELS // pixels))
    return [to_unit(images.images(chosen[i : i + size]), device) for i in range(0, len(chosen), size)]


def reestimate_elastic(network: Supernet, arch: Arch, batches: list[Tensor]) -> None:
    """Set the supernet's own statistics to those of one of its subnets."""

    training = network.training
    network.eval()
    with torch.no_grad():
        plain = network.extract(arch)
        reestimate_batch_norm(plain, batches)
        for name, unit in plain.named_modules():
            if isinstance(unit, nn.BatchNorm2d):
                elastic = network.get_submodule(name)
                assert isinstance(elastic, nn.BatchNorm2d)
                for statistic in ("running_mean", "running_var"):
                    source = getattr(unit, statistic)
                    getattr(elastic, statistic)[: len(source)] = source
    network.train(training)


def save_supernet(network: Supernet, path: Path) -> None:
    """Write the weights as float16, the statistics too: half of the size for no measurable loss."""
    tensors = {
        name: (t.detach().cpu().half() if t.is_floating_point() else t.detach().cpu()).contiguous()
        for name, t in network.state_dict().items()
    }
    with atomic(path) as temporary:
        save_file(tensors, temporary, {"schema": SUPERNET_SCHEMA, **network.space.identity})
