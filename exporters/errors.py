"""What goes wrong with a model file or a quantized network."""


class ExportError(ValueError):
    """A quantized network, a model file or a target that cannot be used; the message says what to do, in one line."""

    def __init__(self, message: str) -> None:
        # names out of a broken file may hold line breaks and other things that do not print
        super().__init__(" ".join("".join(c if c.isprintable() else " " for c in message).split()))


class UnsupportedGraph(ExportError):
    """An ONNX graph outside of what `read_onnx` accepts; names the node and what is supported."""
