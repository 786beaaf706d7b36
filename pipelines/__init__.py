"""The ends that join both stages: the demo, recipes, the table of fusers, transcription of raw audio."""

from __future__ import annotations

from featcache import waiting

# Its modules import numpy as they are loaded.
waiting.asleep()
