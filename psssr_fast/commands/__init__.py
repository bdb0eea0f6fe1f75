"""The verbs of the command line, one module each; :mod:`psssr_fast.cli` puts them together."""
