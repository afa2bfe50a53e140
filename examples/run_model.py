"""Run a compiled model with TVM's runtime alone: python run_model.py model.so image.npy

image.npy: float32 (1, channels, height, width), scaled as in training, by 1/255 for networks of `apq-deploy export`.
Needs apache-tvm and NumPy; the model's shapes and what it was made from stand in the file itself, as JSON behind the
words "apq-deploy compiled model: ".
"""

import ctypes
import os
import sys

os.environ.setdefault("TVM_USE_RUNTIME_LIB", "1")  # the runtime without the compiler
os.environ.setdefault("TVM_NUM_THREADS", "1")

import numpy as np
import tvm
from tvm.runtime.vm import VirtualMachine


def main() -> None:
    model, image = os.path.abspath(sys.argv[1]), np.load(sys.argv[2]).astype(np.float32)
    if not ctypes.CDLL(model).apq_deploy_supported():
        sys.exit(f"{model} was compiled for instructions that this CPU does not have")
    machine = VirtualMachine(tvm.runtime.load_module(model), tvm.cpu())
    logits = machine["main"](tvm.runtime.tensor(image)).numpy()
    best = int(logits[0].argmax())
    print(f"class {best}, logit {logits[0, best]:.4f}")


if __name__ == "__main__":
    main()
