"""The sub-commands of `python -m harken`, a module each: `add` says its arguments, `run` does its work."""
