"""Formats that candidates are exported in, one file each; `moopt.exporting` finds them as entry points."""
