"""The ends that join both stages: the demo, recipes, the table of fusers, transcription of raw audio."""
