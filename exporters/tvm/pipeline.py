"""The passes from a kernel's TIR to what LLVM takes: those of TVM's default that kernels of this kind need.

The rest hoist, partition and share expressions, which LLVM does again, and take most of the time of a compilation.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.tirx import compilation_pipeline

PIPELINE = "apq-deploy"  # its name among TVM's


@tvm.transform.module_pass(opt_level=0)
def kernel_pipeline(module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
    """The module with its kernels lowered, ready for the code generator."""
    passes = [
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.VectorizeLoop(True),
        tirx.transform.StmtSimplify(),
        tirx.transform.VerifyMemory(),
        tirx.transform.AnnotateEntryFunc(),
        tirx.transform.SplitHostDevice(),
        tirx.transform.MakePackedAPI(),
        tirx.transform.FP8StorageLegalize(),
        tirx.transform.BF16StorageLegalize(),
    ]
    return tvm.ir.transform.Sequential(passes)(module)


def _stages() -> tuple[Any, Any, Any]:
    return kernel_pipeline, compilation_pipeline.finalize_host_passes, compilation_pipeline.finalize_device_passes


compilation_pipeline.register_tir_pipeline(PIPELINE, _stages)
