"""Does what is asked for, what a model says, or what is to be added agree with what a cache is?"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from featcache.audio import AUDIO_RULES
from featcache.digest import json_differences
from featcache.errors import MismatchError
from featcache.spec import CacheSpec, format_profile
from featcache.storage import Storage
from featcache.upstreams import Upstream, UpstreamConfig, places

if TYPE_CHECKING:
    from featcache.job import Request


def refuse_other_request(asked: Request, spec: CacheSpec, storage: Storage) -> None:
    """Compare what is asked for with what the cache is.

    Raises:
        MismatchError: they differ; says in what.
    """
    stored = UpstreamConfig.model_validate(spec.upstream)
    differences = []
    if asked.upstream is not None:
        # Of a local model the place that is asked for is taken: `refuse_other_values` says whether it is the same.
        stored = places.moved(asked.upstream, stored)
        for field in UpstreamConfig.model_fields:
            want, have = getattr(asked.upstream, field), getattr(stored, field)
            # What was left at its default asks for nothing.
            if field in asked.upstream.model_fields_set and want != have:
                differences.append(f"{field} {want!r} is asked for, the cache has {have!r}")
    for field in sorted(asked.layout.model_fields_set):
        want, have = getattr(asked.layout, field), getattr(spec.layout, field)
        if want != have:
            differences.append(f"{field} {want!r} is asked for, the cache has {have!r}")
    # A profile without parameters asks for no particular ones.
    parameters = asked.parameters or spec.parameters
    if asked.profile is not None and (asked.profile, parameters) != (spec.profile, spec.parameters):
        text = format_profile(asked.profile, asked.parameters or {})
        differences.append(f"profile {text!r} is asked for, the cache has {spec.profile_text!r}")
    if differences:
        raise MismatchError(
            f"{storage} was made otherwise ({'; '.join(differences)}): give another path, or ask for what it has"
        )


def refuse_other_values(upstream: Upstream, spec: CacheSpec, storage: Storage) -> None:
    """Compare what the model says decides its values with the cache's.

    Raises:
        MismatchError: they differ; says in what.
    """
    mine = {"upstream": upstream.identity, "audio rules": AUDIO_RULES, "taps": list(upstream.taps)}
    theirs = {"upstream": spec.identity, "audio rules": spec.audio, "taps": list(spec.taps)}
    # Both sides as JSON, so that a tuple equals the list it was stored as.
    found = json_differences(json.loads(json.dumps(theirs)), json.loads(json.dumps(mine)))
    if found:
        raise MismatchError(
            f"this model would add other values to {storage} ({'; '.join(found)}): "
            "use the same model, settings and kind of device, or make another cache"
        )


def refuse_recoded(spec: CacheSpec, storage: Storage, rows: str) -> None:
    """Codes of the model's own values do not lie beside those that were made of another cache's codes.

    Values that were rounded before come out otherwise: one encoding id with its parent stands for one way to make it.

    Args:
        rows: what is to be added.

    Raises:
        MismatchError: the cache was recoded.
    """
    if spec.parent is not None:
        raise MismatchError(
            f"{storage} lacks {rows} and was recoded from another cache (encoding id {spec.parent}): add them to that "
            f"one with `featcache extract`, then run the same `featcache recode CACHE {storage} --profile "
            f"{spec.profile_text}` again, which adds what is new"
        )
