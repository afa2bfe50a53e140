"""TVM, imported only after its versions are known to work together."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from exporters.errors import ExportError

TVM_VERSION = "0.27.0.post1"
FFI_VERSION = "0.1.14.post1"


def check_versions() -> None:
    """Nothing, if the installed TVM is the one that the kernels are written for.

    Raises: ExportError with the command that installs it. Other versions of the ffi crash rather than complain.
    """
    for package, wanted in (("apache-tvm", TVM_VERSION), ("apache-tvm-ffi", FFI_VERSION)):
        try:
            found = version(package)
        except PackageNotFoundError:
            found = "none"
        if found != wanted:
            raise ExportError(
                f"compiling needs {package} {wanted}, found {found}; run "
                f"`pip install apache-tvm=={TVM_VERSION} apache-tvm-ffi=={FFI_VERSION}`"
            )


check_versions()
