"""What goes wrong with a model file or a quantized network."""

from hwmodels.errors import one_line


class ExportError(ValueError):
    """A quantized network, a model file or a target that cannot be used; the message says what to do, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class UnsupportedGraph(ExportError):
    """An ONNX graph outside of what `read_onnx` accepts; names the node and what is supported."""
