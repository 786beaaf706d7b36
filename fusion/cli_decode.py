"""`fusion decode`: beam search beside greedy decoding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fusion.cli_options import AsJson, RunFolder
from fusion.console import plain_console


def decode(
    run: RunFolder,
    beam: Annotated[int, typer.Option(min=1, help="Hypotheses that are kept at each frame.")] = 50,
    order: Annotated[int, typer.Option(min=2, max=6, help="Words of the longest n-gram.")] = 3,
    lm: Annotated[
        Path | None,
        typer.Option(
            help="An ARPA or KenLM file of words, in place of the model of train's texts.", show_default=False
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="Further text for models and lexicon, a sentence a line.", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: AsJson = False,
) -> None:
    r"""Score greedy decoding and beam search, with and without a lexicon and language models, on test.

    Language models and lexicon come from the texts of train, their weights are tuned on dev. All is kept in the
    run's folder `decoding`. Needs the package flashlight-text: pip install 'speech-featcache\[beam]'.
    """
    from fusion import decode as decoding
    from fusion.distributed import pick_device
    from fusion.run import Run

    messages = plain_console(stderr=True)

    def say(line: str) -> None:
        messages.print(line, highlight=False, soft_wrap=True)

    result = decoding.decode(
        Run.open(run, pick_device(device, key="--device")), beam=beam, order=order, lm=lm, text=text, say=say
    )
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        decoding.print_result(result, plain_console())
