"""`dato demo`: a page in the browser on which a front can be tried with one's own prompts.

- `choices` says what can be chosen: points of a front, one schedule, the rule for a speed-up.
- `job` is what the page asks for and gets; `run` is a job under way; `studio` runs one job at a time.
- `usage` and `png_file` let the user take a result along: Python lines, a command, a PNG with its settings.
- `texts`, `markup` and `page` are the page, made with gradio; `server` serves it, and nothing else.

Only `page` and `server` need gradio.
"""
