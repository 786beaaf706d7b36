"""Layer analysis: similarities and shares by hand, and the whole of it on a toy language."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from featcache.errors import MismatchError
from fusion.modules.hff import HFF
from fusion.modules.rivals import Ladder, LastTap, WeightedSum
from fusion.run import Run
from pipelines import figures, layers, studies
from pipelines.layers import Layers, linear_cka, weights_of
from tests.fusion.speech import toy_cache, toy_recipe

OVERRIDES = ("train.workers=0", "train.mask_taps=0.0")


def test_cka_is_1_for_rotations_and_small_for_strangers() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 6, generator=generator, dtype=torch.float64)
    x = x - x.mean(0)
    x = torch.linalg.qr(x)[0] * 4000**0.5  # white, so that standardising does not undo a rotation
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
    stranger = torch.randn(4000, 6, generator=generator, dtype=torch.float64)
    loud = x * torch.tensor([1.0, 1, 1, 1, 1, 500], dtype=torch.float64) + 7
    found = linear_cka(torch.stack([x, x @ turn, stranger, loud], 1))
    assert found[0, 1] == pytest.approx(1) and found[0, 3] == pytest.approx(1)
    assert found[0, 2] < 0.05
    assert torch.equal(found, found.T) and torch.allclose(found.diagonal(), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("kind", [HFF, Ladder, WeightedSum])
def test_shares_are_those_of_the_gated_mean(kind: type[HFF | Ladder | WeightedSum]) -> None:
    torch.manual_seed(0)
    fuser: torch.nn.Module = kind(5, 8, 8).eval()
    with torch.no_grad():
        for name, parameter in fuser.named_parameters():
            if "gate" in name or "mixture" in name:
                parameter.normal_()
    shares = weights_of(fuser)
    assert shares is not None and float(shares.sum()) == pytest.approx(1, abs=1e-5)
    if kind is not WeightedSum:
        fuser.norm = torch.nn.Identity()
    # Nothing is added to the mean at the start, so the output moves with each tap by the tap's share.
    features = torch.zeros(1, 1, 5, 8)
    moved = []
    with torch.no_grad():
        still = fuser(features)
        for tap in range(5):
            one = features.clone()
            one[:, :, tap] = 1.0
            moved.append((fuser(one) - still).norm())
    sizes = torch.stack(moved)
    assert torch.allclose(sizes / sizes.sum(), shares, atol=1e-5)


def test_fusers_without_gates_have_no_shares() -> None:
    assert weights_of(HFF(5, 8, 8, residual=False)) is None and weights_of(LastTap(5, 8)) is None


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Layers]:
    place = tmp_path_factory.mktemp("layers")
    base = place / "asr.toml"
    base.write_text(toy_recipe(toy_cache(place / "cache", 30), 10, "linear"))
    head = studies.read(base, "hff", None, 1, OVERRIDES)
    [run] = studies.train([head], runs=place, console=Console(quiet=True))
    return place, layers.analyse(
        place / "cache", [base], heads=[run.path], runs=place, overrides=OVERRIDES, console=Console(quiet=True)
    )


def test_probes_read_one_tap_each_through_a_linear_layer(found: tuple[Path, Layers]) -> None:
    place, result = found
    assert [curve.measure for curve in result.curves] == ["wer", "cer"]
    for i, tap in enumerate(result.taps):
        run = place / f"layers/asr-tap-{tap}-seed1"
        spec = Run.read_spec(run)
        assert (spec.taps, spec.decoder["kind"]) == ((tap,), "linear")
        assert Run.read_metrics(run)["wer"] == pytest.approx(result.curves[0].scores[i].value)
    assert result.frames > 100 and len(result.similarity) == len(result.taps) == 3


def test_what_a_head_loses_without_a_tap(found: tuple[Path, Layers]) -> None:
    [one] = found[1].attention
    assert one.weights is not None and sum(one.weights) == pytest.approx(1, abs=1e-5)
    # The tree starts as nearly the last tap, and ten steps do not change that.
    assert max(one.silenced) == one.silenced[-1] and one.silenced[-1] > 0 and one.weights[-1] > 0.9


def test_a_head_that_was_looked_at_still_evaluates(found: tuple[Path, Layers]) -> None:
    """It was left in training mode, in which dropout makes its log probabilities chance."""
    place, _ = found
    run = Run.open(place / "hff")
    cache = run.open_cache()
    before = run.log_probs(cache.read(0))
    layers.attention_of(run, cache)
    assert not any(part.training for part in run.head.modules())
    assert torch.equal(run.log_probs(cache.read(0)), before)


def test_json_plots_and_table(found: tuple[Path, Layers], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = found[1]
    back = Layers.from_json(json.loads(json.dumps(result.as_json())))
    assert json.dumps(back.as_json()) == json.dumps(result.as_json())
    for draw in (figures.by_tap, figures.similarity, figures.attention):
        figures.save(draw(back), tmp_path / f"{draw.__name__}.png")
        assert (tmp_path / f"{draw.__name__}.png").read_bytes()[:4] == b"\x89PNG"
    layers.print_tables(result)
    out = capsys.readouterr().out
    assert "asr WER" in out and f"{result.curves[0].scores[1].value:.3f}" in out
    assert f"{result.attention[0].silenced[-1]:+.3f}" in out


def test_a_head_of_other_features_is_refused_before_the_probes_are_trained(
    found: tuple[Path, Layers], tmp_path: Path
) -> None:
    place, _ = found
    toy_cache(tmp_path / "cache", 30, taps=2)
    with pytest.raises(MismatchError, match="was trained on features"):
        layers.analyse(
            tmp_path / "cache", [place / "asr.toml"], heads=[place / "hff"], runs=tmp_path, overrides=OVERRIDES,
            console=Console(quiet=True),
        )  # fmt: skip
    assert not (tmp_path / "layers").exists()
