"""The engine of this process: a transformers causal language model under our own batched decode loop.

`hf` is the engine. `rows` are what is being decoded, on `lanes` of a buffer of keys and values (`kv`), after prefixes
seen before (`prefixes`); `decoder` chooses how an architecture is computed (`fused`, `generic`, over `attention`), and
`sampling` draws. Imports torch.
"""
