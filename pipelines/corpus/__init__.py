"""What a corpus of any size would take: bytes, objects, requests, GPU hours, dollars, by profile.

`trial` writes a small segment with the library's own code and counts what that asks of a store; `estimate` scales it
up; `table` shows it.
"""
