"""What a `deploy.toml` may say: one frozen dataclass per section, every field with its unit, meaning and range."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

Kind = Literal["number", "whole", "flag", "text", "texts", "widths"]


@dataclass(frozen=True, slots=True)
class FieldDoc:
    """What a field takes. choices: the only texts allowed; empty where any text is."""

    kind: Kind
    unit: str
    meaning: str
    low: float | None
    high: float | None
    choices: tuple[str, ...]

    @property
    def expected(self) -> str:
        """What the field takes, in words."""
        if self.choices:
            listed = ", ".join(f'"{choice}"' for choice in self.choices)
            return f"a list out of {listed}" if self.kind == "texts" else f"one of {listed}"
        words = {
            "number": "a number",
            "whole": "a whole number",
            "flag": "true or false",
            "text": "text",
            "texts": "a list of different names",
            "widths": "a table of layer names and whole numbers from 1 to 32",
        }[self.kind]
        if self.low is not None and self.high is not None:
            return f"{words} from {self.low:g} to {self.high:g}"
        return words if self.low is None else f"{words} of at least {self.low:g}"


def _entry(
    kind: Kind,
    unit: str,
    meaning: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    default: Any = None,
) -> Any:
    return field(default=default, metadata={"doc": FieldDoc(kind, unit, meaning, low, high, choices)})


def field_docs(section: type) -> dict[str, FieldDoc]:
    """The documentation of every field of a section by name."""
    return {each.name: each.metadata["doc"] for each in fields(section)}


# Settings that several gates share


@dataclass(frozen=True, slots=True)
class HardwareSettings:
    """What latency, energy and bitops are computed on."""

    needs: ClassVar[tuple[str, ...]] = ()
    model: str = _entry("text", "", "name of a hardware model, or path of its TOML file", default="bitfusion")
    table: Path | None = _entry("text", "", "cost table in place of a model")  # noqa: RUF009 - it is `field`
    sum: str = _entry(
        "text",
        "",
        "which layers count: every one, or those of APQ's released table",
        choices=("full", "apq"),
        default="full",
    )
    bits: int | None = _entry("whole", "bits", "width of every layer of a file in float", low=1, high=16)


@dataclass(frozen=True, slots=True)
class CompiledSettings:
    """The library that parity and measured_latency look at."""

    needs: ClassVar[tuple[str, ...]] = ()
    library: Path | None = _entry(  # noqa: RUF009 - it is `field`
        "text", "", "library made by `apq-deploy compile`; without it the model is compiled"
    )
    target: str = _entry("text", "", "CPU to compile for", default="host")
    threads: int = _entry("whole", "threads", "threads of the library and of onnxruntime", low=1, high=64, default=1)
    repeats: int = _entry("whole", "runs", "timed runs in each round", low=5, high=100_000, default=200)
    rounds: int = _entry("whole", "rounds", "rounds in which the runtimes take turns", low=1, high=100, default=3)


# Gates


@dataclass(frozen=True, slots=True)
class OpsetGate:
    needs: ClassVar[tuple[str, ...]] = ("min", "max", "max_ir_version")
    min: int | None = _entry("whole", "opset", "lowest version of the operator set ai.onnx", low=1)
    max: int | None = _entry("whole", "opset", "highest version of the operator set ai.onnx", low=1)
    max_ir_version: int | None = _entry("whole", "IR version", "highest version of the file format", low=1)


@dataclass(frozen=True, slots=True)
class OperatorsGate:
    needs: ClassVar[tuple[str, ...]] = ("allow", "deny")
    allow: tuple[str, ...] | None = _entry("texts", "", "the only operators that may occur")
    deny: tuple[str, ...] | None = _entry("texts", "", "operators that may not occur")


@dataclass(frozen=True, slots=True)
class AuditGate:
    needs: ClassVar[tuple[str, ...]] = ()
    max_false_claims: int = _entry("whole", "claims", "claims of the file that may be false", low=0, default=0)
    max_weight_bits: int | None = _entry("whole", "bits", "most bits of any layer's weights", low=1, high=32)
    max_act_bits: int | None = _entry("whole", "bits", "most bits of what any layer with weights reads", low=1, high=32)
    weight_bits: dict[str, int] | None = _entry(  # noqa: RUF009
        "widths", "bits", "most bits of the weights of single layers, by name"
    )
    integer_kernels: bool = _entry(
        "flag", "", "whether every layer with weights must run on integers in onnxruntime", default=False
    )


@dataclass(frozen=True, slots=True)
class SizeGate:
    needs: ClassVar[tuple[str, ...]] = ("max_kb", "max_bytes")
    max_kb: float | None = _entry("number", "10^3 bytes", "most bytes of the file and its side files", low=0)
    max_bytes: int | None = _entry("whole", "bytes", "the same in bytes", low=0)


@dataclass(frozen=True, slots=True)
class BitopsGate:
    needs: ClassVar[tuple[str, ...]] = ("max_g",)
    max_g: float | None = _entry(
        "number", "10^9", "most bit operations of one image: MACs * weight bits * activation bits", low=0
    )


@dataclass(frozen=True, slots=True)
class LatencyGate:
    needs: ClassVar[tuple[str, ...]] = ("max_ms",)
    max_ms: float | None = _entry("number", "ms", "most latency of one image on the hardware model", low=0)


@dataclass(frozen=True, slots=True)
class EnergyGate:
    needs: ClassVar[tuple[str, ...]] = ("max_mj",)
    max_mj: float | None = _entry("number", "mJ", "most energy of one image on the hardware model", low=0)


@dataclass(frozen=True, slots=True)
class AccuracyGate:
    needs: ClassVar[tuple[str, ...]] = ("min_percent",)
    min_percent: float | None = _entry("number", "%", "least share of images in their class", low=0, high=100)
    images: int | None = _entry("whole", "images", "measure on the first so many images; without it on all", low=1)


@dataclass(frozen=True, slots=True)
class ParityGate:
    needs: ClassVar[tuple[str, ...]] = ()
    max_differing: int = _entry(
        "whole", "codes", "most codes that may differ from the NumPy reference, all tensors and runtimes together",
        low=0, default=0,
    )  # fmt: skip
    runtimes: tuple[str, ...] = _entry(
        "texts",
        "",
        "who is compared with the NumPy reference",
        choices=("onnxruntime", "tvm", "torch"),
        default=("onnxruntime", "tvm"),
    )
    images: int = _entry("whole", "images", "images whose codes are compared", low=1, high=4096, default=16)


@dataclass(frozen=True, slots=True)
class MeasuredLatencyGate:
    needs: ClassVar[tuple[str, ...]] = ("max_ratio", "max_ms")
    max_ratio: float | None = _entry(
        "number", "share", "most of onnxruntime's median latency that the library's may take", low=0
    )
    max_ms: float | None = _entry("number", "ms", "most median latency of one image on this machine", low=0)


@dataclass(frozen=True, slots=True)
class RegressionGate:
    needs: ClassVar[tuple[str, ...]] = (
        "accuracy_points", "latency_percent", "energy_percent", "bitops_percent", "size_percent",
        "measured_ratio_percent", "measured_ms_percent",
    )  # fmt: skip
    baseline: Path | None = _entry(  # noqa: RUF009
        "text", "", "file of figures to compare with; `--baseline` stands above it"
    )
    accuracy_points: float | None = _entry("number", "points", "how far accuracy may fall", low=0, high=100)
    latency_percent: float | None = _entry("number", "%", "how far modelled latency may rise", low=0)
    energy_percent: float | None = _entry("number", "%", "how far modelled energy may rise", low=0)
    bitops_percent: float | None = _entry("number", "%", "how far bit operations may rise", low=0)
    size_percent: float | None = _entry("number", "%", "how far the file's size may rise", low=0)
    measured_ratio_percent: float | None = _entry(
        "number", "%", "how far the library's share of onnxruntime's latency may rise", low=0
    )
    measured_ms_percent: float | None = _entry("number", "%", "how far measured latency may rise", low=0)
