"""Benchmarks: searches of ours and of others on the same problems, at equal evaluations, over many seeds.

`races` says what runs, `runner` runs it and stores a file for every search, `scores` and `table` compare, `plots`
draws. Knows algorithms and problems, and no particular one of either.
"""
