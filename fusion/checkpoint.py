"""Tensors and facts of a run on disk: safetensors and JSON, written whole or not at all, never pickle.

The facts that belong to the tensors (step, sampler position, best score so far) travel in the header of
the safetensors file, so that one rename makes both appear together. The JSON beside it is a copy for
reading eyes.
"""

from __future__ import annotations

import errno
import json
import math
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from featcache.errors import FeatcacheError, JobError, UsageError

T = TypeVar("T")
_TEMPORARY = ".tmp-"


def write_bytes(path: Path, data: bytes) -> None:
    """Write or replace a file: temporary file, fsync, rename, fsync of the folder.

    Raises:
        JobError: the disk is full, or the place cannot be written to.
    """
    temporary = path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cause = "no space is left" if full else str(error.strerror)
        raise JobError(
            f"{path} cannot be written: {cause}; what was saved before is whole, mend that and run it again"
        ) from error


def remove_half_written(folder: Path) -> None:
    """Remove what writers that were killed left in a folder; nobody else may be writing there."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """A number that is none (a score that is undefined) is null there, which JSON has."""
    write_bytes(path, (json.dumps(defined(value), indent=2, ensure_ascii=False) + "\n").encode())


def defined(value: Any) -> Any:
    """A JSON-able value with None for every number in it that is not finite."""
    if isinstance(value, Mapping):
        return {key: defined(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [defined(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_bytes(path, json_lines(rows))


def json_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """What `write_json_lines` writes."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def read_json(path: Path) -> Any:
    """
    Raises:
        UsageError: there is no such file.
        FeatcacheError: it is not JSON.
    """
    return _read(path, json.loads)


def read_json_lines(path: Path) -> list[Any]:
    """What `write_json_lines` wrote; raises as `read_json` does."""
    return _read(path, lambda data: [json.loads(line) for line in data.splitlines()])


def _read(path: Path, parse: Callable[[bytes], T]) -> T:
    try:
        return parse(path.read_bytes())
    except FileNotFoundError as error:
        raise UsageError(f"{path} is not there; is {path.parent} the folder of a run?") from error
    except (ValueError, OSError) as error:
        raise FeatcacheError(f"{path} cannot be read ({error}); train again with --restart") from error


def save(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors (any device) and JSON-able facts as one safetensors file; equal content, equal bytes."""
    host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # one key only: the order of several in the header is not fixed
    header = {"facts": json.dumps(defined(facts), sort_keys=True, ensure_ascii=False)}
    write_bytes(path, safetensors.torch.save(host, metadata=header))


def load(path: Path, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save` wrote.

    Raises:
        UsageError: there is no such file.
        FeatcacheError: it is damaged.
    """
    try:
        with safetensors.safe_open(path, framework="pt", device=str(device)) as file:
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118 (not a mapping)
    except FileNotFoundError as error:
        raise UsageError(f"{path} is not there; train the run first") from error
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise FeatcacheError(f"{path} is damaged ({error}); train again with --restart") from error


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Put tensors into a module, all of them and no others.

    Raises:
        FeatcacheError: names or shapes differ.
    """
    try:
        module.load_state_dict(dict(tensors), strict=True)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise FeatcacheError(f"{source} does not fit the head that head.json describes: {first}") from error


def optimiser_tensors(optimiser: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The state of an optimiser as tensors named `PARAMETER/KEY`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value
        for parameter, state in optimiser.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def load_optimiser(optimiser: torch.optim.Optimizer, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimiser_tensors`."""
    parameters = dict(module.named_parameters())
    for name, value in tensors.items():
        parameter, _, key = name.rpartition("/")
        if parameter not in parameters:
            raise FeatcacheError(f"the checkpoint knows {parameter}, which this head lacks; use --restart")
        owner = parameters[parameter]
        # the step count stays where the optimiser makes it: fused kernels want it beside the parameter
        optimiser.state[owner][key] = value.to(owner.device) if value.ndim or owner.is_cuda else value
