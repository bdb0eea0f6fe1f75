"""Jobs that survive: an immutable plan, a journal, chunks that are kept, one output at the end."""

POINTS = (
    "folder-made", "plan-written", "plan-renamed", "chunk-encoded", "chunk-synced",
    "chunk-renamed", "image-written", "journal-half", "journal-written", "journaled",
    "image-renamed", "ended", "assembling", "assembled", "done-written", "noted",
    "output-renamed", "clearing", "cleared",
)  # fmt: skip
"""Where :mod:`psssr_fast.faults` can stop a job, in the order in which it passes them."""
