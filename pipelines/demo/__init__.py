"""The demo: real speech and a real model that package registries carry.

fetch.py      Debian packages, unpacked outside the work tree and checked by SHA-256
model.py      model weights inside Python packages
prompts.py    telephone prompts in five languages -> data/demo/manifest.jsonl
fillets.py    Dutch game dialogues -> data/fillets/manifest.jsonl
splits.py     train, dev and test without a shared sentence
"""
