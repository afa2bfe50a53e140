"""The supernet of a search space, and its subnets."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors
from safetensors.torch import load_file
from torch import Tensor, nn

from apq_deploy.arch import Arch
from apq_deploy.errors import UserError
from apq_deploy.files import MAX_WEIGHTS_BYTES, check_size
from apq_deploy.space import SearchSpace
from apq_deploy.supernet.elastic import ElasticBlock
from apq_deploy.supernet.subnet import ConvUnit, InvertedResidual, Subnet

SUPERNET_SCHEMA = "apq-deploy/supernet/1"


class Supernet(nn.Module):
    """Every subnet of a space in one set of weights. Source: OFA (ICLR 2020); APQ (CVPR 2020), section 3.1."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space
        width = space.first_block_channels
        self.stem = ConvUnit(space.input_channels, space.stem_channels, 3, 2)
        self.first_block = InvertedResidual(space.stem_channels, None, width, 3, 1, False) if width else None
        self.stages = nn.ModuleList(
            nn.ModuleList(ElasticBlock(p, space.kernel_sizes) for p in space.positions if p.stage == stage)
            for stage in range(space.n_stages)
        )
        self.head = ConvUnit(space.stages[-1].out_channels, space.head_channels, 1)
        self.classifier = nn.Linear(space.head_channels, space.num_classes)

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        """Logits (n, classes) of the subnet `arch` on images (n, c, h, w) in [0, 1]."""
        x = self.stem(x)
        if self.first_block is not None:
            x = self.first_block(x)
        for elastic, stage in zip(self.stages, arch.stages, strict=True):
            for i, block in enumerate(stage.blocks):
                x = elastic[i].run(x, block.mid_channels, block.kernel_size)  # type: ignore[index, operator, union-attr]
        return self.classifier(self.head(x).mean((2, 3)))

    def elastic_blocks(self) -> list[ElasticBlock]:
        return [block for block in self.modules() if isinstance(block, ElasticBlock)]

    def sort_channels(self) -> None:
        """Order the middle channels of every block by importance."""
        for block in self.elastic_blocks():
            block.sort_channels()

    def extract(self, arch: Arch) -> Subnet:
        """The subnet `arch` as a plain module with its own copy of the weights; it computes what the supernet does."""
        subnet = Subnet(self.space, arch).to(next(self.parameters()).device)
        subnet.stem.load_state_dict(self.stem.state_dict())
        if subnet.first_block is not None and self.first_block is not None:
            subnet.first_block.load_state_dict(self.first_block.state_dict())
        for elastic, stage in zip(self.stages, subnet.stages, strict=True):
            for i, block in enumerate(stage):  # type: ignore[arg-type]
                elastic[i].copy_into(block)  # type: ignore[index, operator, union-attr]
        subnet.head.load_state_dict(self.head.state_dict())
        subnet.classifier.load_state_dict(self.classifier.state_dict())
        return subnet.train(self.training)


def load_supernet(space: SearchSpace, path: Path) -> Supernet:
    """The supernet whose weights lie in a safetensors file.

    Raises: UserError for a file that is missing, damaged or of another space.
    """
    tensors, metadata = read_safetensors(path)
    if metadata.get("schema") != SUPERNET_SCHEMA:
        raise UserError(f"{path}: expected schema {SUPERNET_SCHEMA!r}, got {metadata.get('schema')!r}")
    space.require(metadata, path)
    network = Supernet(space)
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    if wanted != {name: tuple(value.shape) for name, value in tensors.items()}:
        raise UserError(
            f"{path} does not hold the weights of the space {space.name!r}; make them with `apq-deploy train`"
        )
    network.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
    return network.eval()


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises: UserError for a file that is missing or damaged.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    check_size(path, MAX_WEIGHTS_BYTES)
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
        return load_file(path), metadata
    except (safetensors.SafetensorError, OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not a complete safetensors file ({error})") from None
