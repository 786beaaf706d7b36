"""The small real model of the tests, in small shards."""

from __future__ import annotations

from featcache.job import Request
from featcache.spec import Layout
from featcache.upstreams import UpstreamConfig

TINY = UpstreamConfig(id="package:whisper-tiny.en")
SMALL = Layout(chunk_frames=32, shard_frames=256, batch_seconds=8)


def request(profile: str = "int8", upstream: UpstreamConfig = TINY, layout: Layout = SMALL) -> Request:
    return Request(upstream=upstream, profile=profile, layout=layout, calibration_seconds=30)
