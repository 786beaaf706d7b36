"""One row of the table, as `pipelines.reproduce.worker` starts it: `python -m pipelines.reproduce ORDER.json`."""

from __future__ import annotations

import sys
from pathlib import Path

from featcache import startup
from featcache.errors import FeatcacheError
from pipelines.reproduce.worker import read, train


def main(place: str) -> None:
    startup.collect_rarely()
    try:
        train(read(Path(place)))
    except FeatcacheError as error:
        print(f"pipelines: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main(sys.argv[1])
