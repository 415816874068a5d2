"""Engines behind HTTP: vLLM, SGLang, llama.cpp, `prm serve`, or several servers of the same model.

`http` is the engine, over `client` (retries, time limits), `endpoints` (which server a request goes to) and `protocol`
(requests, and what replies must be); `served` asks a server what it is.
"""
