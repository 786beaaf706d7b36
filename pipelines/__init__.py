"""The ends that join both stages: the demo, recipes, the table of fusers, transcription of raw audio."""

from __future__ import annotations

from featcache import startup

# Its modules import numpy as they are loaded.
startup.sleep_while_waiting()
