"""A policy and a PRM of this process behind HTTP, for `HTTPEngine`, `HTTPScorer` and any OpenAI client.

Importing this package imports neither torch nor a web framework.
"""
