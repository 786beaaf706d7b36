"""One HTML page about runs: scores, training curves, errors to listen to, rate, layers. It needs no other file.

page = report.build([Path("runs/asr")], Sources(manifest=Path("data/demo/manifest.jsonl")))
report.write(page, Path("report.html"))
"""

from pipelines.report.build import Page, Sources, build, write

__all__ = ["Page", "Sources", "build", "write"]
