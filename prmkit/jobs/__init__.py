"""Long work that may be killed at any moment: outputs that grow in chunks, work shared by processes, stages of a run.

`runner` takes items through a piece of work, many at once, into an output (`chunks`) or a folder that several processes
share (`claims`); annotation, search and judging say only what is done with an item and what comes of a chunk. `stages`
runs commands in order, each once, as `processes`. `items` is the identity of what an output is made from. What an item
is, and what is done with it, is left to the other rooms.
"""
