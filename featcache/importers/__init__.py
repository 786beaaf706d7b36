"""From other tools' descriptions of a corpus to rows of a manifest, one importer a file.

Paths in the rows are absolute; `featcache.manifest.relative` makes them relative to where the manifest goes.
"""

from __future__ import annotations

from featcache.importers.commonvoice import commonvoice
from featcache.importers.folder import folder
from featcache.importers.huggingface import huggingface
from featcache.importers.kaldi import kaldi
from featcache.importers.lhotse import lhotse
from featcache.importers.librispeech import librispeech
from featcache.importers.webdataset import webdataset

__all__ = ["commonvoice", "folder", "huggingface", "kaldi", "lhotse", "librispeech", "webdataset"]
