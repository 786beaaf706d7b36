"""Reading a cache's description from its root metadata."""

from __future__ import annotations

from pydantic import ValidationError

from featcache import layout
from featcache.digest import canonical_json
from featcache.errors import CacheError, CorruptCacheError
from featcache.spec import FORMAT, CacheSpec, values_id
from featcache.storage import Storage


def read_spec(storage: Storage) -> tuple[CacheSpec, bytes]:
    """The description of a cache, and the bytes that it was read from.

    Raises:
        CacheError: no cache is there, or a newer version wrote it.
        CorruptCacheError: the description is damaged.
    """
    data = storage.read(layout.ROOT)
    if data is None:
        raise CacheError(f"there is no cache at {storage}: `featcache init MANIFEST {storage}` makes one")
    try:
        content = layout.read_attributes(data).get(layout.SPEC_ATTRIBUTE)
        if content is None and layout.segments(storage):
            raise ValueError("its description is gone")
        if content is None:
            raise CacheError(f"{storage} is a Zarr group, but not a feature cache: give the path of one")
        if content.get("format") != FORMAT:
            raise CacheError(
                f"{storage} has format {content.get('format')}, and this installation reads format {FORMAT}: "
                "install the version of speech-featcache that wrote it"
            )
        spec = CacheSpec.model_validate(content)
        # What no id can be made of (NaN, half a surrogate pair) was never written.
        own = values_id(spec.identity, spec.audio, spec.taps)
        canonical_json(spec.parameters)
    except (ValueError, AttributeError, ValidationError, RecursionError) as error:
        raise CorruptCacheError(f"{storage}/{layout.ROOT} is damaged: restore it from a copy of the cache") from error
    if own != spec.values_id:
        raise CorruptCacheError(f"{storage}/{layout.ROOT} does not match its values id: restore it from a copy")
    return spec, data
