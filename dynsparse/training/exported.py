"""Reading of files of weights, of `python -m dynsparse export` or other programs, for a run that starts from them.

They are read with the care that checkpoints get: nothing is executed, and no more memory is taken than the file's size
explains.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from dynsparse import files
from dynsparse.errors import UserError
from dynsparse.training.checkpoint.archive import load
from dynsparse.training.checkpoint.limits import DamagedError
from pipelines.common.extras import install_command

CSR_FORMAT = "dynsparse csr 2"
_REMEDY = "give a file of `python -m dynsparse export`, or of torch.save(model.state_dict(), FILE)"
_MOST_TIMES = 4096
"""Most bytes that the dense tensors of a CSR file may take for each byte of it. 1 weight in 8,192 may be active."""
_SPARE_BYTES = 16 << 20
_LONGEST_HEADER = 100 << 20  # safetensors' own limit.


def is_safetensors(path: Path) -> bool:
    """Tell by the file's first 9 bytes: the length of a header, and its first character. OSError if unreadable."""
    with files.open_regular(path) as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") <= _LONGEST_HEADER


_INSIDE = ("state_dict", "model_state_dict", "model")
"""Keys under which training programs of others keep the state_dict, beside what training needs."""


def read_weights(path: Path, *, nested: bool = False) -> dict[str, Tensor]:
    """Read the state_dict in a file of any of the formats that hold one. UserError for anything else.

    With `nested` it may stand under one of the usual keys of a checkpoint of other programs.
    """
    try:
        if is_safetensors(path):
            return _safetensors(path)
        content = _archive(path)
        if isinstance(content, dict) and content.get("format") == CSR_FORMAT:
            return {**content["dense"], **dense_of(content, path.stat().st_size)}
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give an exported file") from None
    except (DamagedError, ValueError) as error:
        raise UserError(f"{path}: no file of weights, or damaged ({error}); {_REMEDY}") from None
    inside = [content.get(key) for key in _INSIDE] if nested and isinstance(content, dict) else []
    found = next((one for one in [content, *inside] if _is_state_dict(one)), None)
    if found is None:
        raise UserError(f"{path}: holds other things than weights; {_REMEDY}")
    return dict(found)


def _is_state_dict(content: Any) -> TypeGuard[dict[str, Tensor]]:
    return isinstance(content, dict) and bool(content) and all(isinstance(one, Tensor) for one in content.values())


def _safetensors(path: Path) -> dict[str, Tensor]:
    if find_spec("safetensors") is None:
        raise UserError(f"{path}: is a safetensors file, and safetensors is not installed; {install_command('export')}")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); export anew") from None
    return found


def _archive(path: Path) -> Any:
    with files.open_regular(path) as file:
        return load(file)


def read_csr(path: Path) -> dict[str, Any]:
    """Read and check a file of `--format csr`. UserError if it is no such file, or damaged."""
    try:
        content = _archive(path)
        if not isinstance(content, dict) or content.get("format") != CSR_FORMAT:
            raise UserError(f"{path}: not of --format csr ('{CSR_FORMAT}'); export anew")
        _check_csr(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a file of --format csr") from None
    except DamagedError as error:
        raise UserError(f"{path}: damaged or not of --format csr ({error}); export anew") from None
    return content


def matrices(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Make torch's CSR tensors [out, in x height x width] of a file's sparse layers. DamagedError if one is invalid."""
    found = {}
    for name, (starts, columns, values) in content["sparse"].items():
        rows, *rest = content["shapes"][name]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # It says that torch's CSR is in beta.
                found[name] = torch.sparse_csr_tensor(
                    starts, columns, values, (rows, math.prod(rest)), check_invariants=True
                )
        except RuntimeError as error:
            raise DamagedError(f"{name} is no CSR matrix: {str(error).splitlines()[0]}") from None
    return found


def dense_of(content: Mapping[str, Any], file_bytes: int) -> dict[str, Tensor]:
    """Make dense tensors of the weights' own shapes. DamagedError if they need too much memory for the file's size."""
    _check_csr(content)
    needed = sum(4 * math.prod(shape) for shape in content["shapes"].values())
    if needed > _MOST_TIMES * file_bytes + _SPARE_BYTES:
        raise DamagedError(f"claims {needed:,} bytes of weights in a file of {file_bytes:,}")
    return {name: matrix.to_dense().view(content["shapes"][name]) for name, matrix in matrices(content).items()}


def _check_csr(content: Mapping[str, Any]) -> None:
    """Raise DamagedError unless each part has the type that `export` writes."""
    sparse, shapes, dense = content.get("sparse"), content.get("shapes"), content.get("dense")
    if not (isinstance(sparse, dict) and isinstance(shapes, dict) and isinstance(dense, dict)):
        raise DamagedError("it lacks a part")
    if sparse.keys() != shapes.keys() or not all(isinstance(value, Tensor) for value in dense.values()):
        raise DamagedError("its parts do not go together")
    for name, parts in sparse.items():
        tensors = isinstance(parts, (list, tuple)) and len(parts) == 3 and all(isinstance(one, Tensor) for one in parts)
        shape = shapes[name]
        sizes = isinstance(shape, list) and len(shape) >= 2 and all(type(n) is int and 0 < n < 1 << 31 for n in shape)
        if not tensors or not sizes:
            raise DamagedError(f"{name} is no CSR matrix")
        if [one.dtype for one in parts] != [torch.int32, torch.int32, torch.float32]:
            raise DamagedError(f"{name} has other types than int32 indices and float32 values")
