"""vLLM, in this process or as a server that we start, alone or beside a trainer.

`engine` is the one of this process (`start` opens it), `server` starts one (`guard` ends it); `weight_sync` and
`transfer` give a running one new weights. `options` is how both are set up. vLLM is imported when it is needed.
"""
