"""One row of the table, as `pipelines.reproduce.worker` starts it: `python -m pipelines.reproduce ORDER.json`."""

from __future__ import annotations

import sys
from pathlib import Path

from featcache.errors import FeatcacheError
from fusion import checkpoint
from pipelines.reproduce.worker import Order, train


def main(place: str) -> None:
    try:
        train(Order.model_validate(checkpoint.read_json(Path(place))))
    except FeatcacheError as error:
        print(f"pipelines: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main(sys.argv[1])
