"""torchvision, importable beside a CPU build of torch.

A torchvision wheel built for CUDA cannot load its compiled operators beside a CPU torch, and then fails to import on
the missing schemas of two of them. Data sets, transforms and models need neither, so the schemas alone are declared.
"""

from __future__ import annotations

from types import ModuleType


def import_torchvision() -> ModuleType:
    """The torchvision module, with `datasets`, `models` and `transforms` loaded."""
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        _declare_missing_operators()
        import torchvision
    return torchvision


def _declare_missing_operators() -> None:
    import sys

    import torch

    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    # The library object must outlive the import, so it is kept on the torch module that owns the registry.
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torch._apq_torchvision_schemas = library  # type: ignore[attr-defined]
