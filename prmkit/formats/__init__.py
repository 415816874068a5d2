"""The step format: the one contract on steps, from text to token ids and back.

`spec` is the format as data, `presets` has those of known model families, `bound` is a format in the ids of one
tokenizer, over `text_ids` (text of other people's making never becomes a control token), `chat_frames` (what a chat
template puts around messages) and `ends` (where a sample ends). Which models there are is left to `prmkit.models`.
"""
