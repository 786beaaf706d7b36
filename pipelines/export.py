"""A trained head for other programs: its weights with their description, and one program that needs no code of ours.

`head.safetensors` holds the weights; its header holds what `head.json` of a run says (fuser, decoder, tokeniser,
taps, upstream), under the key `facts`. `head.pt2` is a torch.export program from features float32
(frames, taps, channels) of any length from `shortest` on to log probabilities float32 (frames', outputs), with the
same description as its extra file `head.json`.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featcache.errors import FeatcacheError, JobError
from fusion import checkpoint, head
from fusion.run import Run

WEIGHTS, PROGRAM, DESCRIPTION = "head.safetensors", "head.pt2", "head.json"
TOLERANCE = 1e-4
"""Largest difference of a log probability between the program and the head."""


@dataclass(frozen=True)
class Exported:
    """What was written; `difference` is the largest one of a log probability over `checked` lengths."""

    weights: Path
    program: Path
    shortest: int
    difference: float
    checked: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "weights": str(self.weights),
            "program": str(self.program),
            "shortest": self.shortest,
            "difference": self.difference,
            "checked": list(self.checked),
        }


class Program(nn.Module):
    """A head over one utterance: features (frames, taps, channels) to log probabilities (frames', outputs)."""

    def __init__(self, module: head.Head) -> None:
        super().__init__()
        self.head = module

    def forward(self, features: Tensor) -> Tensor:
        lengths = torch.full((1,), features.shape[0], dtype=torch.int64, device=features.device)
        # export turns oneDNN off, and then unrolls an LSTM over the frames of its example
        exporting = torch.compiler.is_exporting()
        with torch.backends.mkldnn.flags(enabled=True) if exporting else contextlib.nullcontext():
            logits, _ = self.head(features.unsqueeze(0), lengths)
        return logits[0].float().log_softmax(-1)


def export(run: Run, out: Path) -> Exported:
    """Write a run's head in both forms, read both back, and compare them with the head.

    Raises:
        JobError: what was read back gives other values, or the files cannot be written.
    """
    spec = run.spec
    module = head.build(spec)
    module.load_state_dict(run.head.state_dict())
    program = Program(module.cpu().eval().requires_grad_(False)).eval()
    shortest = spec.stride + 1
    facts = spec.model_dump(mode="json")
    weights, traced = out / WEIGHTS, out / PROGRAM
    checkpoint.save(weights, module.state_dict(), facts)
    _save_program(program, traced, (8 * spec.stride, len(spec.taps), spec.channels), facts)
    again = Program(load_weights(weights)[0]).eval()
    reread = torch.export.load(traced).module()
    lengths = (shortest, 8 * spec.stride, 8 * spec.stride + 1, 777)
    difference = 0.0
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for frames in lengths:
            noise = torch.randn(frames, len(spec.taps), spec.channels, generator=generator)
            features = noise * module.deviation + module.centre
            wanted = program(features)
            for other in (again, reread):
                difference = max(difference, float((other(features) - wanted).abs().max()))
    if not difference <= TOLERANCE:
        raise JobError(
            f"{out}: the exported head differs from {run.path} by {difference:.1e}; this torch cannot export it"
        )
    return Exported(weights, traced, shortest, difference, lengths)


def load_weights(path: Path) -> tuple[head.Head, head.HeadSpec]:
    """The head in `head.safetensors`, in evaluation mode, and its description; the run is not needed."""
    tensors, facts = checkpoint.load(path)
    spec = head.HeadSpec.model_validate(facts)
    module = head.build(spec)
    checkpoint.load_weights(module, tensors, path)
    return module.eval(), spec


def _save_program(program: Program, path: Path, example: tuple[int, int, int], facts: dict[str, Any]) -> None:
    """Trace with any number of frames and write the program, without the example in it (which would be a pickle)."""
    frames = {0: torch.export.Dim.DYNAMIC}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch about torch: views of an LSTM's own weights
        try:
            traced = torch.export.export(program, (torch.zeros(example),), dynamic_shapes=(frames,), strict=False)
        except Exception as error:  # torch.export has no common base of its errors
            why = " ".join(str(error).split())[:160]
            raise FeatcacheError(f"torch {torch.__version__} cannot export this head ({why})") from error
    traced.example_inputs = None
    with tempfile.TemporaryDirectory() as folder:  # the name of the file is written into it
        written = Path(folder) / path.name
        torch.export.save(traced, written, extra_files={DESCRIPTION: json.dumps(facts, ensure_ascii=False)})
        checkpoint.write_bytes(path, written.read_bytes())


__all__ = ["Exported", "Program", "export", "load_weights"]
