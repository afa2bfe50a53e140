"""What goes wrong with a model file or a quantized network."""


class ExportError(ValueError):
    """A quantized network, a model file or a target that cannot be used; the message says what to do."""


class UnsupportedGraph(ExportError):
    """An ONNX graph outside of what `read_onnx` accepts; names the node and what is supported."""
