"""Jobs that survive: an immutable plan, a journal, chunks that are kept, one output at the end."""

POINTS = (
    "plan-written", "plan-renamed", "chunk-encoded", "chunk-synced", "chunk-renamed",
    "image-written", "journal-half", "journal-written", "journaled", "ended", "assembling",
    "assembled", "done-written", "noted", "output-renamed", "clearing", "cleared",
)  # fmt: skip
"""Where :mod:`psssr_fast.faults` can stop a job, in the order in which it passes them."""
